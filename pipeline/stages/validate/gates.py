"""The gates of a run: what every delivered model must reach, and what the user asks for."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from atopipe.pipeline.config.schema import Config
from atopipe.pipeline.config.targets import Target
from atopipe.pipeline.engine.stage import Context
from atopipe.pipeline.report.devices import FOR_ANOTHER_DEVICE
from atopipe.pipeline.report.verdicts import PARITY_GATES
from atopipe.pipeline.stages.validate.variants import Variant

if TYPE_CHECKING:
    from atopipe.validate.accuracy import Accuracy, Classes, Flips
    from atopipe.validate.gates import Gate, Verdict
    from atopipe.validate.latency import Comparison
    from atopipe.validate.parity import Parity


LOSSLESS_LIMIT = 1e-10
ABOVE_MAJORITY = "accuracy.above_majority"
IMAGES_OFF = 1e-4  # of all: logits that are equal but for rounding may be answered either way


@dataclass(frozen=True)
class Findings:
    """What was measured.

    `parting`: where the delivered file differs first, if it does; `majority`: top-1 against always answering the most
    frequent class; `inconclusive_because`: why nothing can be decided
    by the latency, None where something can.
    """

    parity: "Parity"
    parting: str
    accuracies: "Mapping[str, Accuracy]"
    flips: "Mapping[str, Flips]"
    variants: list[Variant]
    latency: "Comparison"
    majority: "Gate"
    inconclusive_because: str | None


def images_off_limit(count: int) -> float:
    """How many more or fewer of `count` images the ONNX file may answer rightly than the network it is made from."""
    return max(1.0, IMAGES_OFF * count)


def annotated(verdicts: "list[Verdict]", config: Config, found: Findings) -> "list[Verdict]":
    """The same verdicts; of those that are no pass, some say more.

    The first failed one about parity says where the file parts from the network.
    """
    failing = [verdict.gate.name for verdict in verdicts if verdict.outcome.value != "pass"]
    notes = {ABOVE_MAJORITY: _about_majority(found)}
    if config.gates.max_accuracy_drop is None:
        notes["accuracy.drop"] = "--max-accuracy-drop sets another limit than this default, and 1 none"
    notes |= dict.fromkeys([name for name in PARITY_GATES if name in failing][:1], found.parting)
    return [
        replace(verdict, reason=f"{verdict.reason}: {notes[name]}")
        if (name := verdict.gate.name) in failing and name in notes
        else verdict
        for verdict in verdicts
    ]


def majority_gate(answers: "Classes", labels: "Classes") -> "Gate":
    """Top-1 less that of always answering the most frequent class, which must be at least one image more.

    The interval is paired, image by image. What is not better at all fails whatever the interval.
    """
    import numpy as np

    from atopipe.validate.accuracy import flips
    from atopipe.validate.gates import Bound, Gate

    constant = np.full_like(labels, np.bincount(labels).argmax())
    change = flips(constant, answers, labels)
    gain, (low, high) = 0.0 - change.drop, change.drop_interval()
    interval = (0.0 - high, 0.0 - low) if gain > 0 else None
    return Gate(ABOVE_MAJORITY, gain, 1 / len(labels), Bound.AT_LEAST, interval)


def _about_majority(found: Findings) -> str:
    top1, gain = found.accuracies["onnx"].top1, found.majority.value or 0.0
    return (
        f"always answering the most frequent class is right on {top1 - gain:.4f} of the validation images, "
        f"the network on {top1:.4f}"
    )


def standing_gates(context: Context, found: Findings) -> "list[Gate]":
    """What every delivered model must reach, whatever its settings."""
    from atopipe.validate.gates import Gate
    from atopipe.validate.parity import ROUNDING_LIMIT

    counted, parity = _metrics_of(context, "shrink"), found.parity
    onnx, shrunk = found.accuracies["onnx"], found.accuracies["shrunk"]
    return [
        Gate("lossless.max_rel_diff", counted.get("lossless.max_rel_diff"), LOSSLESS_LIMIT),
        Gate("parity.max_rel_diff", parity.max_rel_diff, parity.tolerance),
        Gate("parity.float64_rel_diff", parity.float64_rel_diff, parity.tolerance),
        Gate("parity.rounding_ratio", parity.rounding_ratio, ROUNDING_LIMIT),
        *(_target_gate(cost, target, counted) for cost, target in context.config.targets.items() if cost != "latency"),
        *_latency_gate(context, found),
        found.majority,
        Gate("accuracy.onnx_images_off", abs(onnx.correct - shrunk.correct), images_off_limit(onnx.count)),
    ]


def _target_gate(cost: str, target: Target, counted: Mapping[str, float]) -> "Gate":
    """A fraction limits the ratio to the dense network, an amount what the shrunk one has."""
    from atopipe.validate.gates import Gate

    name = f"{cost}.ratio" if target.is_fraction else f"{cost}.shrunk"
    return Gate(name, counted.get(name), target.value)


def _latency_gate(context: Context, found: Findings) -> "Iterator[Gate]":
    """The budget in latency, held on the bad end of the interval; undecided where another device has to say."""
    from atopipe.validate.gates import Gate

    target, because = context.config.target_latency, found.inconclusive_because
    if target is None:
        return
    if context.config.latency_table is not None:
        because = FOR_ANOTHER_DEVICE
    if target.is_fraction:
        ratio = found.latency.ratio
        interval = (ratio.low, ratio.high) if ratio else None
        value = ratio.estimate if ratio else None
        yield Gate("latency.ratio", value, target.value, interval=interval, inconclusive_because=because)
    else:
        shrunk = found.latency.second
        name, interval = "latency.shrunk_p50_ms", shrunk.interval_ms
        yield Gate(name, shrunk.p50_ms, target.value, interval=interval, inconclusive_because=because)


def chosen_gates(context: Context, found: Findings) -> "list[Gate]":
    """The limits of section `gates` that were set, and that on the accuracy lost where a baseline tells it."""
    from atopipe.validate.gates import Bound, Gate
    from atopipe.validate.latency import speedup_gate

    limits, gates = context.config.gates, []
    if (limit := context.config.max_accuracy_drop) is not None:
        change = found.flips["dense_to_onnx"]
        gates.append(Gate("accuracy.drop", change.drop, limit, interval=change.drop_interval()))
    if limits.min_accuracy is not None:
        onnx = found.accuracies["onnx"]
        gates.append(Gate("accuracy.onnx", onnx.top1, limits.min_accuracy, Bound.AT_LEAST, onnx.interval()))
    if limits.min_speedup is not None:
        gates.append(speedup_gate(found.latency, limits.min_speedup, found.inconclusive_because))
    if limits.max_latency_ms is not None:
        shrunk, because = found.latency.second, found.inconclusive_because
        interval = shrunk.interval_ms
        name, limit = "latency.shrunk_p50_ms", limits.max_latency_ms
        gates.append(Gate(name, shrunk.p50_ms, limit, interval=interval, inconclusive_because=because))
    if limits.max_size_mb is not None:
        size = _metrics_of(context, "export").get("size.shrunk_bytes")
        gates.append(Gate("size.shrunk_mb", None if size is None else size / 1e6, limits.max_size_mb))
    return gates


def _metrics_of(context: Context, stage: str) -> Mapping[str, float]:
    result = context.run.stages.result(stage)
    return result.metrics if result else {}


def as_dict(verdict: "Verdict") -> dict[str, object]:
    gate = verdict.gate
    limit = f"{gate.bound.value} {gate.limit:g}"
    return {
        "name": gate.name,
        "value": gate.value,
        "limit": limit,
        "outcome": verdict.outcome.value,
        "reason": verdict.reason,
        **({"low": gate.interval[0], "high": gate.interval[1]} if gate.interval else {}),
        **({"inconclusive_because": gate.inconclusive_because} if gate.inconclusive_because else {}),
    }
