"""Any two ONNX models against each other on this machine: latency, load time, memory, size, and a verdict."""

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from atopipe.pipeline.engine.deployment import PROVIDERS
from atopipe.pipeline.report.tables import aligned
from atopipe.pipeline.system.errors import AtopipeError, GateFailed, Inconclusive, UsageError
from atopipe.pipeline.system.text import milliseconds, scaled

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from atopipe.validate.footprint import Footprint
    from atopipe.validate.gates import Verdict
    from atopipe.validate.latency import AATest, Comparison


IMAGES = 32  # random ones that the runs go through, or one batch if that is larger
LARGEST_BATCH = 4096
AA_SHARE = 0.25  # of the time, for the A/A test of the first model


@dataclass(frozen=True)
class Where:
    """ONNX Runtime's name of the provider, and its threads on the CPU."""

    provider: str
    threads: int


@dataclass(frozen=True)
class Bench:
    """What was found; `sweep` has one comparison per batch size, the first of which is judged."""

    names: tuple[str, str]
    provider: str
    footprints: "tuple[Footprint, Footprint]"
    sweep: "tuple[Comparison, ...]"
    aa_test: "AATest"
    verdict: "Verdict"

    def as_dict(self) -> dict[str, Any]:
        return {
            "models": [{"name": n, **asdict(f)} for n, f in zip(self.names, self.footprints, strict=True)],
            "provider": self.provider,
            "latency": [asdict(comparison) for comparison in self.sweep],
            "aa_test": asdict(self.aa_test.comparison) | {"passed": self.aa_test.passed},
            "verdict": self.verdict.outcome.value,
            "reason": self.verdict.reason,
        }

    def as_text(self) -> str:
        """Aligned columns, and the verdict."""
        first, second = self.footprints
        rows = [
            ("", *self.names, "second / first"),
            _row("file", first.file_bytes, second.file_bytes, "B"),
            (
                "load",
                milliseconds(first.load_ms),
                milliseconds(second.load_ms),
                f"{second.load_ms / first.load_ms:.3f}",
            ),
            _row("memory", first.memory_bytes, second.memory_bytes, "B"),
            *(_latency_row(comparison) for comparison in self.sweep),
        ]
        judged = self.sweep[0]
        conditions = f"{self.provider}, threads {judged.threads}, {100 * judged.kept:.0f} % of timed runs not preempted"
        verdict = f"{self.verdict_word}: {self.verdict.reason}"
        return "\n".join([aligned(rows), "", f"{conditions}; {_same(self.aa_test)}", verdict])

    @property
    def verdict_word(self) -> str:
        return self.verdict.outcome.value

    def failure(self) -> AtopipeError | None:
        """What the verdict makes of the exit code; None for a pass."""
        kind = {"fail": GateFailed, "inconclusive": Inconclusive}.get(self.verdict_word)
        return kind(f"{self.verdict_word}: {self.verdict.reason}") if kind else None


def sizes_of(batches: str) -> list[int]:
    """Batch sizes as they are given on the command line, `1,8`; UsageError for anything else."""
    sizes = batches.split(",")
    if not all(re.fullmatch("[0-9]{1,4}", size) and 1 <= int(size) <= LARGEST_BATCH for size in sizes):
        words = f"must be whole numbers from 1 to {LARGEST_BATCH} like 1,8,32"
        raise UsageError(f"--batches is '{batches}', but {words}")
    return [int(size) for size in sizes]


def bench(
    first: Path,
    second: Path,
    *,
    provider: str,
    threads: int,
    batches: Sequence[int],
    seconds: float,
    min_speedup: float,
    seed: int = 0,
) -> Bench:
    """Measures both for `seconds` per batch size; the second must be `min_speedup` times as fast at the first size.

    `provider` is one of `PROVIDERS`. Raises UsageError where the models do not take the same images; SessionError where
    one of them cannot be run, ProviderError where the provider cannot.
    """
    from atopipe.validate.footprint import measure_footprint
    from atopipe.validate.gates import judge
    from atopipe.validate.latency import AATest, speedup_gate, time_interleaved

    where = Where(PROVIDERS[provider], threads)
    footprints = (measure_footprint(first, **asdict(where)), measure_footprint(second, **asdict(where)))
    images = _images(first, second, max(IMAGES, *batches), where, seed)

    def compared(other: Path, batch: int, budget_s: float) -> "Comparison":
        models = (first, other)
        timings = time_interleaved(models, images, batch=batch, budget_s=budget_s, seed=seed, **asdict(where))
        return timings.compare(0, 1)

    aa_test = AATest(compared(first, batches[0], AA_SHARE * seconds))
    sweep = tuple(compared(second, batch, seconds) for batch in batches)
    because = sweep[0].inconclusive_because or aa_test.inconclusive_because
    verdict = judge(speedup_gate(sweep[0], min_speedup, because))
    return Bench((first.name, second.name), provider, footprints, sweep, aa_test, verdict)


def _images(first: Path, second: Path, count: int, where: Where, seed: int) -> "NDArray[np.float32]":
    """Random images that both models take and answer with numbers."""
    import numpy as np

    from atopipe.validate.session import SessionError, open_session

    sessions = {path: open_session(path, **asdict(where)) for path in (first, second)}
    shapes = {path: session.input_shape() for path, session in sessions.items()}
    if shapes[first] != shapes[second]:
        raise UsageError(
            f"'{first}' takes images of shape {list(shapes[first])}, '{second}' of {list(shapes[second])}: "
            "only models for the same images can be compared"
        )
    images = np.random.default_rng(seed).normal(size=(count, *shapes[first])).astype(np.float32)
    for path, session in sessions.items():
        if not np.isfinite(session.run(images[:1])).all():
            raise SessionError(f"'{path}' gives a non-finite output for a random image")
    return images


def _row(name: str, first: int, second: int, unit: str) -> tuple[str, str, str, str]:
    ratio = f"{second / first:.3f}" if first > 0 else ""
    return name, f"{scaled(first)}{unit}", f"{scaled(second)}{unit}", ratio


def _latency_row(comparison: "Comparison") -> tuple[str, str, str, str]:
    shown = [milliseconds(each.p50_ms) if each.p50_ms else "" for each in (comparison.first, comparison.second)]
    ratio = comparison.ratio
    interval = f"{ratio.estimate:.3f} [{ratio.low:.3f}, {ratio.high:.3f}]" if ratio else ""
    return f"p50 at batch {comparison.batch}", shown[0], shown[1], interval


def _same(aa_test: "AATest") -> str:
    ratio = aa_test.comparison.ratio
    return (
        f"A/A test of the first: {ratio.estimate:.3f} [{ratio.low:.3f}, {ratio.high:.3f}]" if ratio else "no A/A test"
    )
