"""What becomes of a model's variants: each against fp32, image by image and in time. One that does not pay is dropped.

A variant is kept if the whole interval of the accuracy it loses is within the limit, and the whole interval of its
latency is below that of fp32. The fastest of what is kept, fp32 included, is the winner on this machine.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from atopipe.pipeline.config.schema import FULL
from atopipe.pipeline.engine.deployment import enough_images, session_arguments
from atopipe.pipeline.engine.networks import accuracy_of
from atopipe.pipeline.engine.stage import Context
from atopipe.pipeline.rundir.layout import DENSE, MODEL, file_of

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from atopipe.validate.accuracy import Accuracy, Flips
    from atopipe.validate.gates import Gate
    from atopipe.validate.latency import Comparison


@dataclass(frozen=True)
class Variant:
    """What is known of one variant; None: not measured. `reason`: why it is not delivered, None where it is.

    `max_rel_diff`: the largest difference of a logit from that of fp32, in units of the logits' standard deviation.
    """

    name: str
    file: Path | None = None
    reason: str | None = None
    top1: float | None = None
    flips: "Flips | None" = None
    max_rel_diff: float | None = None
    latency: "Comparison | None" = None

    def metrics(self) -> dict[str, float]:
        """What was measured, as flat metrics."""
        return {key: value for key, value in (*self._of_answers(), *self._of_latency()) if value is not None}

    def _of_answers(self) -> Iterator[tuple[str, float | None]]:
        name = self.name
        yield f"accuracy.{name}", self.top1
        yield f"parity.{name}_max_rel_diff", self.max_rel_diff
        if self.flips is not None:
            low, high = self.flips.drop_interval()
            yield f"accuracy.{name}_drop", self.flips.drop
            yield f"accuracy.{name}_drop_low", low
            yield f"accuracy.{name}_drop_high", high

    def _of_latency(self) -> Iterator[tuple[str, float | None]]:
        name, latency = self.name, self.latency
        if latency is not None:
            yield f"latency.{name}_p50_ms", latency.second.p50_ms
        if latency is not None and latency.ratio is not None:
            yield f"latency.{name}_ratio", latency.ratio.estimate
            yield f"latency.{name}_ratio_low", latency.ratio.low
            yield f"latency.{name}_ratio_high", latency.ratio.high


def examine(context: Context, fp32: "Accuracy", images: "NDArray[np.float32]") -> list[Variant]:
    """What the variants of stage quantize answer, on the whole validation set and on `images`.

    One that could not be made, or has no sound answers, has a reason instead.
    """
    from atopipe.validate.accuracy import AccuracyError
    from atopipe.validate.session import SessionError

    made = json.loads(context.input("quantize", "variants.json").read_text(encoding="utf-8"))
    found = [Variant(name, reason=report.get("reason")) for name, report in made.items()]
    for position, variant in enumerate(found):
        if variant.reason is None:
            try:
                found[position] = _answers(context, variant.name, fp32, images)
            except (SessionError, AccuracyError) as error:
                found[position] = replace(variant, reason=str(error))
    return found


def _answers(context: Context, name: str, fp32: "Accuracy", images: "NDArray[np.float32]") -> Variant:
    """Run in a separate process first: some float16 graphs make ONNX Runtime crash."""
    from atopipe.validate.accuracy import flips
    from atopipe.validate.footprint import measure_footprint
    from atopipe.validate.session import open_session

    file, threads = context.input("quantize", file_of(name)), context.workspace.threads
    measure_footprint(file, threads=threads)
    session = open_session(file, threads=threads)
    accuracy = accuracy_of(context, session.run)
    wanted = open_session(context.input("export", MODEL), threads=threads).run(images)
    difference = float(abs(session.run(images) - wanted).max() / wanted.std())
    changed = flips(fp32.predictions, accuracy.predictions, context.workspace.data.val.labels.numpy())
    return Variant(name, file, None, accuracy.top1, changed, difference)


def timed(
    context: Context, variants: Sequence[Variant], images: "NDArray[np.float32]"
) -> tuple["Comparison", list[Variant]]:
    """In one session: the latency of dense against shrunk, and of every variant that has answers against fp32."""
    from atopipe.validate.latency import time_interleaved

    files = {variant.name: variant.file for variant in variants if variant.file is not None}
    models = [context.input("export", DENSE), context.input("export", MODEL), *files.values()]
    budget = context.config.validation.latency_s * len(models) / 2
    deployment = context.config.deployment
    images, arguments = enough_images(images, deployment), session_arguments(deployment)
    timings = time_interleaved(models, images, **arguments, seed=context.config.seed, budget_s=budget)
    latencies = {name: timings.compare(1, position) for position, name in enumerate(files, start=2)}
    return timings.compare(0, 1), [replace(variant, latency=latencies.get(variant.name)) for variant in variants]


def judged(variant: Variant, max_drop: float, inconclusive_because: str | None) -> Variant:
    """The variant with a reason not to deliver it, unless it is known to be as accurate as asked for, and faster."""
    if variant.reason is not None or variant.flips is None or variant.latency is None:
        return variant
    accuracy = _accuracy_gate(variant.name, variant.flips, max_drop)
    gates = accuracy, _latency_gate(variant.name, variant.latency, inconclusive_because)
    return replace(variant, reason=next(filter(None, map(_failure, gates)), None))


def _accuracy_gate(name: str, flips: "Flips", limit: float) -> "Gate":
    from atopipe.validate.gates import Gate

    return Gate(f"accuracy.{name}_drop", flips.drop, limit, interval=flips.drop_interval())


def _latency_gate(name: str, latency: "Comparison", because: str | None) -> "Gate":
    from atopipe.validate.gates import Gate

    ratio = latency.ratio
    value, interval = (ratio.estimate, (ratio.low, ratio.high)) if ratio else (None, None)
    because = latency.inconclusive_because or because
    return Gate(f"latency.{name}_ratio", value, 1.0, interval=interval, inconclusive_because=because)


def _failure(gate: "Gate") -> str | None:
    """Why a gate was not passed, None where it was; what cannot be decided is not passed."""
    from atopipe.validate.gates import Outcome, judge

    verdict = judge(gate)
    return None if verdict.outcome is Outcome.PASS else verdict.reason


def as_json(variants: Sequence[Variant]) -> dict[str, Any]:
    """What becomes of each, and the fastest of what is delivered."""
    kept = {v.name: v.latency.ratio.estimate for v in variants if v.reason is None and v.latency and v.latency.ratio}
    return {
        "winner": min(kept, key=kept.__getitem__, default=FULL),
        "kept": [FULL, *kept],
        "dropped": {variant.name: variant.reason for variant in variants if variant.name not in kept},
    }
