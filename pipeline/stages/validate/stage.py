"""Judge what export wrote: the same function, as accurate, within the budget, and how fast, in ONNX Runtime.

Leaves gates.json, one verdict per gate, parity.json, one entry per comparison, flips.json, how many images changed
their answer on the way, answers.safetensors and examples.safetensors, what was answered, and, where variants were made,
variants.json, what becomes of each. A failed gate is a valid result: the stage is complete all the same.
"""

from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from atopipe.pipeline.config.settings import TARGETS
from atopipe.pipeline.engine.deployment import enough_images, session_arguments
from atopipe.pipeline.engine.networks import accuracy_of, load_dense, load_shrunk, load_trained
from atopipe.pipeline.engine.stage import Context, Stage
from atopipe.pipeline.models.inference import as_function
from atopipe.pipeline.rundir.layout import MODEL
from atopipe.pipeline.stages.validate.answers import save_answers
from atopipe.pipeline.stages.validate.gates import (
    Findings,
    annotated,
    as_dict,
    chosen_gates,
    majority_gate,
    standing_gates,
)
from atopipe.pipeline.stages.validate.variants import as_json, examine, judged, timed
from atopipe.pipeline.system.files import write_json
from atopipe.pipeline.system.machine import hardware

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from atopipe.validate.accuracy import Flips
    from atopipe.validate.latency import Comparison


PARITY_IMAGES = 32


def run(context: Context) -> dict[str, float]:
    from atopipe.validate.gates import judge

    found = _measure(context)
    gates = [*standing_gates(context, found), *chosen_gates(context, found)]
    verdicts = annotated([judge(gate) for gate in gates], context.config, found)
    write_json(context.folder / "gates.json", [as_dict(verdict) for verdict in verdicts])
    write_json(context.folder / "parity.json", found.parity.to_json())
    flips = {name: {**asdict(f), "drop": f.drop, "drop_interval": f.drop_interval()} for name, f in found.flips.items()}
    write_json(context.folder / "flips.json", flips)
    if context.config.has_variants:
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
    from atopipe.pipeline.stages.validate.divergence import compare
    from atopipe.validate.accuracy import flips
    from atopipe.validate.session import open_session

    workspace, config = context.workspace, context.config
    delivered = context.input("export", MODEL)
    images = workspace.images(PARITY_IMAGES).numpy()
    device = workspace.device
    small = load_shrunk(context.run)
    export = partial(export_onnx, small, workspace.example, metadata={})
    parity, parting = compare(small, delivered, images, export=export, seed=config.seed)
    accuracies = {
        "masked": accuracy_of(context, as_function(load_trained(context), device)),
        "shrunk": accuracy_of(context, as_function(small, device)),
        "onnx": accuracy_of(context, open_session(delivered, threads=workspace.threads).run),
    }
    if config.baseline:
        accuracies["dense"] = accuracy_of(context, as_function(load_dense(context), device))
    labels, answers = workspace.data.val.labels.numpy(), accuracies["onnx"].predictions
    changed = {
        f"{name}_to_onnx": flips(accuracies[name].predictions, answers, labels)
        for name in ("masked", "shrunk", "dense")
        if name in accuracies
    }
    variants = examine(context, accuracies["onnx"], images) if config.has_variants else []
    latency, variants = timed(context, variants, images)
    because = _inconclusive_because(context, latency, delivered, images)
    variants = [judged(variant, config.gates.max_variant_drop, because) for variant in variants]
    save_answers(context, accuracies)
    return Findings(parity, parting, accuracies, changed, variants, latency, majority_gate(answers, labels), because)


def _inconclusive_because(
    context: Context, latency: "Comparison", model: Path, images: "NDArray[np.float32]"
) -> str | None:
    """Why nothing can be decided by the latency: too busy a machine, or one that fails an A/A test."""
    from atopipe.validate.latency import AATest, time_interleaved

    limits = (context.config.gates.min_speedup, context.config.gates.max_latency_ms, context.config.target_latency)
    decides = context.config.has_variants or any(limit is not None for limit in limits)
    if latency.inconclusive_because is not None or not decides:
        return latency.inconclusive_because
    share = context.config.validation.latency_s / 2
    deployment = context.config.deployment
    images, arguments = enough_images(images, deployment), session_arguments(deployment)
    timings = time_interleaved([model, model], images, **arguments, seed=context.config.seed, budget_s=share)
    return AATest(timings.compare(0, 1)).inconclusive_because


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


STAGE = Stage(
    name="validate",
    run=run,
    inputs=("train", "baseline", "shrink", "export", "quantize"),
    settings=("model", "data", *TARGETS, "baseline", "variants", "gates", "seed", "validation", "deployment"),
    libraries=("torch", "torchvision", "onnxruntime", "numpy"),
)
