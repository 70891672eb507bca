"""Judge what export wrote: the same function, as accurate, within the budget, and how fast, in ONNX Runtime.

Leaves gates.json, one verdict per gate, parity.json, one entry per comparison, flips.json, how many images changed
their answer on the way, and, where variants were made, variants.json, what becomes of each. A failed gate is a valid
result: the stage is complete all the same.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from atopipe.pipeline.environment import hardware
from atopipe.pipeline.errors import GateFailed, Inconclusive, ParityGateFailed
from atopipe.pipeline.files import write_json
from atopipe.pipeline.flags import TARGETS
from atopipe.pipeline.networks import accuracy_of, as_function, load_dense, load_shrunk, load_trained
from atopipe.pipeline.run_directory import RunDirectory
from atopipe.pipeline.runner import Context
from atopipe.pipeline.stages import baseline, quantize
from atopipe.pipeline.variants import Variant, as_json, examine, judged, timed

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from atopipe.validate.acceptance import Gate, Verdict
    from atopipe.validate.accuracy import Accuracy, Flips
    from atopipe.validate.latency import Comparison
    from atopipe.validate.parity import Parity

NAME = "validate"
INPUTS = ("train", "baseline", "shrink", "export", "quantize")
SETTINGS = ("model", "data", *TARGETS, "baseline", "variants", "gates", "seed", "validation")
LIBRARIES = ("torch", "torchvision", "onnxruntime", "numpy")
PARITY_IMAGES = 32
LOSSLESS_LIMIT = 1e-10
ONE_IMAGE = 1
PARITY_GATES = ("parity.max_rel_diff", "parity.float64_rel_diff", "parity.rounding_ratio")
EQUIVALENCE_GATES = ("lossless.max_rel_diff", *PARITY_GATES)


@dataclass(frozen=True)
class Findings:
    """What was measured.

    `parting`: where the delivered file differs first, if it does; `doubt`: why nothing can be decided by the latency,
    None where it can.
    """

    parity: "Parity"
    parting: str
    accuracies: "Mapping[str, Accuracy]"
    flips: "Mapping[str, Flips]"
    variants: list[Variant]
    latency: "Comparison"
    doubt: str | None


def run(context: Context) -> dict[str, float]:
    from atopipe.validate.acceptance import judge

    found = _measure(context)
    gates = [*_standing_gates(context, found), *_chosen_gates(context, found)]
    verdicts = _located([judge(gate) for gate in gates], found.parting)
    write_json(context.folder / "gates.json", [_as_dict(verdict) for verdict in verdicts])
    write_json(context.folder / "parity.json", found.parity.to_json())
    flips = {name: {**asdict(f), "drop": f.drop, "drop_interval": f.drop_interval()} for name, f in found.flips.items()}
    write_json(context.folder / "flips.json", flips)
    if quantize.is_wanted(context.config):
        write_json(context.folder / "variants.json", {**as_json(found.variants), "cpu": hardware()["cpu"]})
    return {
        **{f"accuracy.{name}": found.accuracies[name].top1 for name in ("masked", "shrunk", "onnx")},
        **_drop_metrics(found.flips),
        "parity.max_abs_diff": found.parity.max_abs_diff,
        "parity.max_rel_diff": found.parity.max_rel_diff,
        "parity.float64_rel_diff": found.parity.float64_rel_diff,
        "parity.rounding_ratio": found.parity.rounding_ratio,
        **_latency_metrics(found.latency),
        **{name: value for variant in found.variants for name, value in variant.metrics().items()},
    }


def _measure(context: Context) -> Findings:
    from atopipe.export.onnx import export_onnx
    from atopipe.pipeline.divergence import compare
    from atopipe.validate.accuracy import flips
    from atopipe.validate.session import open_session

    workspace, config = context.workspace, context.config
    delivered = context.input("export", "model.onnx")
    images = workspace.images(PARITY_IMAGES).numpy()
    device = workspace.device
    small = load_shrunk(context)
    export = partial(export_onnx, small, workspace.example, metadata={})
    parity, parting = compare(small, delivered, images, export=export, seed=config.seed)
    accuracies = {
        "masked": accuracy_of(context, as_function(load_trained(context), device)),
        "shrunk": accuracy_of(context, as_function(small, device)),
        "onnx": accuracy_of(context, open_session(delivered, threads=workspace.threads).run),
    }
    if baseline.is_wanted(config):
        accuracies["dense"] = accuracy_of(context, as_function(load_dense(context), device))
    labels, answers = workspace.data.val.labels.numpy(), accuracies["onnx"].predictions
    changed = {
        f"{name}_to_onnx": flips(accuracies[name].predictions, answers, labels)
        for name in ("masked", "shrunk", "dense")
        if name in accuracies
    }
    variants = examine(context, accuracies["onnx"], images) if quantize.is_wanted(config) else []
    latency, variants = timed(context, variants, images)
    doubt = _doubt(context, latency, delivered, images)
    variants = [judged(variant, config.gates.max_variant_drop, doubt) for variant in variants]
    return Findings(parity, parting, accuracies, changed, variants, latency, doubt)


def _doubt(context: Context, latency: "Comparison", model: Path, images: "NDArray[np.float32]") -> str | None:
    """Why nothing can be decided by the latency: too busy a machine, or one that finds a model unlike itself."""
    from atopipe.validate.latency import null_test

    limits = (context.config.gates.min_speedup, context.config.gates.max_latency_ms)
    decides = quantize.is_wanted(context.config) or any(limit is not None for limit in limits)
    if latency.doubt is not None or not decides:
        return latency.doubt
    share = context.config.validation.latency_s / 2
    return null_test(model, images, seed=context.config.seed, budget_s=share).doubt


def _located(verdicts: "list[Verdict]", parting: str) -> "list[Verdict]":
    """The same verdicts; the first failed one about parity says where the file parts from the network."""
    broken = next((v for v in verdicts if v.gate.name in PARITY_GATES and v.outcome.value == "fail"), None)
    return [replace(v, reason=f"{v.reason}: {parting}") if v is broken else v for v in verdicts]


def require_equivalence(run: RunDirectory) -> None:
    """Raises ParityGateFailed where the delivered model was found not to be the trained one."""
    broken = [reason for name, reason in _reasons(run, "fail").items() if name in EQUIVALENCE_GATES]
    if broken:
        raise ParityGateFailed(f"the delivered model is not the trained one: {'; '.join(broken)}")


def raise_verdict(run: RunDirectory) -> None:
    """Turns the gates of a complete validate stage into the exit code; a failed equivalence outweighs the rest."""
    require_equivalence(run)
    failed, unclear = _reasons(run, "fail"), _reasons(run, "inconclusive")
    if failed:
        raise GateFailed(f"gate failed: {'; '.join(failed.values())}")
    if unclear:
        raise Inconclusive(f"inconclusive: {'; '.join(unclear.values())}: {_remedy(unclear, run)}")


def _reasons(run: RunDirectory, outcome: str) -> dict[str, str]:
    """Of the gates with that outcome, by their names."""
    gates = json.loads(run.artifact(NAME, "gates.json").read_text(encoding="utf-8"))
    return {gate["name"]: gate["reason"] for gate in gates if gate["outcome"] == outcome}


def _remedy(unclear: Mapping[str, str], run: RunDirectory) -> str:
    """The interval of the accuracy is the same each time the same images are measured; that of the latency is not."""
    if all(name.startswith("accuracy.") for name in unclear):
        return "more validation images would narrow the interval"
    return f"measure again with 'atopipe validate {run.root} --force'"


def _standing_gates(context: Context, found: Findings) -> "list[Gate]":
    """What every delivered model must reach, whatever its settings."""
    from atopipe.validate.acceptance import Gate
    from atopipe.validate.parity import ROUNDING_LIMIT

    counted, parity = _metrics_of(context, "shrink"), found.parity
    onnx, shrunk = found.accuracies["onnx"], found.accuracies["shrunk"]
    return [
        Gate("lossless.max_rel_diff", counted.get("lossless.max_rel_diff"), LOSSLESS_LIMIT),
        Gate("parity.max_rel_diff", parity.max_rel_diff, parity.tolerance),
        Gate("parity.float64_rel_diff", parity.float64_rel_diff, parity.tolerance),
        Gate("parity.rounding_ratio", parity.rounding_ratio, ROUNDING_LIMIT),
        *(
            Gate(f"{cost}.ratio", counted.get(f"{cost}.ratio"), target)
            for cost, target in context.config.targets.items()
        ),
        Gate("accuracy.onnx_images_off", abs(onnx.correct - shrunk.correct), ONE_IMAGE),
    ]


def _chosen_gates(context: Context, found: Findings) -> "list[Gate]":
    """The limits of section `gates` that were set."""
    from atopipe.validate.acceptance import Bound, Gate
    from atopipe.validate.latency import speedup_gate

    limits, gates = context.config.gates, []
    if limits.max_accuracy_drop is not None:
        change = found.flips["dense_to_onnx"]
        gates.append(Gate("accuracy.drop", change.drop, limits.max_accuracy_drop, interval=change.drop_interval()))
    if limits.min_accuracy is not None:
        onnx = found.accuracies["onnx"]
        gates.append(Gate("accuracy.onnx", onnx.top1, limits.min_accuracy, Bound.AT_LEAST, onnx.interval()))
    if limits.min_speedup is not None:
        gates.append(speedup_gate(found.latency, limits.min_speedup, found.doubt))
    if limits.max_latency_ms is not None:
        arm = found.latency.second
        limit, interval = limits.max_latency_ms, arm.interval_ms
        gates.append(Gate("latency.shrunk_p50_ms", arm.p50_ms, limit, interval=interval, doubt=found.doubt))
    if limits.max_size_mb is not None:
        size = _metrics_of(context, "export").get("size.shrunk_bytes")
        gates.append(Gate("size.shrunk_mb", None if size is None else size / 1e6, limits.max_size_mb))
    return gates


def _metrics_of(context: Context, stage: str) -> Mapping[str, float]:
    result = context.run.result(stage)
    return result.metrics if result else {}


def _as_dict(verdict: "Verdict") -> dict[str, object]:
    gate = verdict.gate
    limit = f"{gate.bound.value} {gate.limit:g}"
    return {
        "name": gate.name,
        "value": gate.value,
        "limit": limit,
        "outcome": verdict.outcome.value,
        "reason": verdict.reason,
        **({"low": gate.interval[0], "high": gate.interval[1]} if gate.interval else {}),
        **({"doubt": gate.doubt} if gate.doubt else {}),
    }


def _drop_metrics(flips: "Mapping[str, Flips]") -> dict[str, float]:
    """The accuracy lost against the dense network, where there is one."""
    if "dense_to_onnx" not in flips:
        return {}
    low, high = flips["dense_to_onnx"].drop_interval()
    return {"accuracy.drop": flips["dense_to_onnx"].drop, "accuracy.drop_low": low, "accuracy.drop_high": high}


def _latency_metrics(latency: "Comparison") -> dict[str, float]:
    """What was measured; too few undisturbed runs leave a metric out."""
    dense, shrunk = latency.first.interval_ms or (None, None), latency.second.interval_ms or (None, None)
    values = {
        "latency.dense_p50_ms": latency.first.p50_ms,
        "latency.dense_low_ms": dense[0],
        "latency.dense_high_ms": dense[1],
        "latency.shrunk_p50_ms": latency.second.p50_ms,
        "latency.shrunk_low_ms": shrunk[0],
        "latency.shrunk_high_ms": shrunk[1],
    }
    measured = {name: value for name, value in values.items() if value is not None}
    if latency.ratio is None:
        return measured
    interval = {"latency.ratio_low": latency.ratio.low, "latency.ratio_high": latency.ratio.high}
    return {**measured, "latency.ratio": latency.ratio.estimate, **interval}
