"""Judge what export wrote: the same function, as accurate, within the budget, and how fast, in ONNX Runtime.

Leaves gates.json, one verdict per gate, and parity.json, one entry per comparison. A failed gate is a valid result:
the stage is complete all the same.
"""

import json
from typing import TYPE_CHECKING

from atopipe.pipeline.config import TARGETS
from atopipe.pipeline.errors import GateFailed, Inconclusive, ParityGateFailed
from atopipe.pipeline.networks import accuracy_of, as_function, load_shrunk, load_trained
from atopipe.pipeline.run_directory import RunDirectory, write_json
from atopipe.pipeline.runner import Context

if TYPE_CHECKING:
    from atopipe.validate.acceptance import Gate, Verdict
    from atopipe.validate.accuracy import Accuracy
    from atopipe.validate.latency import Comparison
    from atopipe.validate.parity import Parity

NAME = "validate"
INPUTS = ("train", "shrink", "export")
SETTINGS = ("model", "data", *TARGETS, "seed", "validation")
LIBRARIES = ("torch", "torchvision", "onnxruntime", "numpy")
PARITY_IMAGES = 32
LOSSLESS_LIMIT = 1e-10
ONE_IMAGE = 1
EQUIVALENCE_GATES = ("lossless.max_rel_diff", "parity.max_rel_diff")


def run(context: Context) -> dict[str, float]:
    import torch

    from atopipe.validate.acceptance import judge
    from atopipe.validate.latency import compare_latency
    from atopipe.validate.parity import measure_parity
    from atopipe.validate.session import open_session

    workspace = context.workspace
    delivered, dense = context.input("export", "model.onnx"), context.input("export", "dense.onnx")
    images = workspace.images(PARITY_IMAGES).numpy()
    device = workspace.device
    small = load_shrunk(context)
    # The reference is the CPU's arithmetic: a GPU may convolve with shorter mantissas (TF32).
    parity = measure_parity(as_function(small, torch.device("cpu")), delivered, images, seed=context.config.seed)
    accuracies = {
        "masked": accuracy_of(context, as_function(load_trained(context), device)),
        "shrunk": accuracy_of(context, as_function(small, device)),
        "onnx": accuracy_of(context, open_session(delivered, threads=workspace.threads).run),
    }
    seed, budget = context.config.seed, context.config.validation.latency_s
    latency = compare_latency(dense, delivered, images, seed=seed, budget_s=budget)
    gates = [_as_dict(judge(gate)) for gate in _gates(context, parity, accuracies["onnx"], accuracies["shrunk"])]
    write_json(context.folder / "gates.json", gates)
    write_json(context.folder / "parity.json", parity.to_json())
    return {
        **{f"accuracy.{name}": accuracy.top1 for name, accuracy in accuracies.items()},
        "parity.max_abs_diff": parity.max_abs_diff,
        "parity.max_rel_diff": parity.max_rel_diff,
        **_latency_metrics(latency),
    }


def raise_verdict(run: RunDirectory) -> None:
    """Turns the gates of a complete validate stage into the exit code; a failed equivalence outweighs the rest."""
    gates = json.loads(run.artifact(NAME, "gates.json").read_text(encoding="utf-8"))
    failed = {gate["name"]: gate["reason"] for gate in gates if gate["outcome"] == "fail"}
    unclear = [gate["reason"] for gate in gates if gate["outcome"] == "inconclusive"]
    broken = [reason for name, reason in failed.items() if name in EQUIVALENCE_GATES]
    if broken:
        raise ParityGateFailed(f"the delivered model is not the trained one: {'; '.join(broken)}")
    if failed:
        raise GateFailed(f"gate failed: {'; '.join(failed.values())}")
    if unclear:
        raise Inconclusive(
            f"inconclusive: {'; '.join(unclear)}: measure again with 'atopipe validate {run.root} --force'"
        )


def _gates(context: Context, parity: "Parity", onnx: "Accuracy", shrunk: "Accuracy") -> "list[Gate]":
    """What every delivered model must reach; how much faster it is, is reported, not demanded."""
    from atopipe.validate.acceptance import Gate

    shrink = context.run.result("shrink")
    counted = shrink.metrics if shrink else {}
    return [
        Gate("lossless.max_rel_diff", counted.get("lossless.max_rel_diff"), LOSSLESS_LIMIT),
        Gate("parity.max_rel_diff", parity.max_rel_diff, parity.tolerance),
        *(
            Gate(f"{cost}.ratio", counted.get(f"{cost}.ratio"), target)
            for cost, target in context.config.targets.items()
        ),
        Gate("accuracy.onnx_images_off", abs(onnx.correct - shrunk.correct), ONE_IMAGE),
    ]


def _as_dict(verdict: "Verdict") -> dict[str, object]:
    gate = verdict.gate
    limit = f"{gate.bound.value} {gate.limit:g}"
    return {
        "name": gate.name,
        "value": gate.value,
        "limit": limit,
        "outcome": verdict.outcome.value,
        "reason": verdict.reason,
    }


def _latency_metrics(latency: "Comparison") -> dict[str, float]:
    """What was measured; too few undisturbed runs leave a metric out."""
    values = {"latency.dense_p50_ms": latency.dense.p50_ms, "latency.shrunk_p50_ms": latency.shrunk.p50_ms}
    measured = {name: value for name, value in values.items() if value is not None}
    if latency.ratio is None:
        return measured
    interval = {"latency.ratio_low": latency.ratio.low, "latency.ratio_high": latency.ratio.high}
    return {**measured, "latency.ratio": latency.ratio.estimate, **interval}
