"""Any two ONNX models against each other on this machine: latency in turns, load time, memory, size, and a verdict."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from atopipe.pipeline.system.errors import AtopipeError, GateFailed, Inconclusive, UsageError
from atopipe.pipeline.system.text import milliseconds, scaled

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from atopipe.validate.footprint import Footprint
    from atopipe.validate.gates import Verdict
    from atopipe.validate.latency import Comparison, NullTest


IMAGES = 32  # random ones that the runs go through in turn, or one batch if that is larger
NULL_SHARE = 0.25  # of the time, for the first model against itself


PROVIDERS: Mapping[str, str] = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
}


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
    null: "NullTest"
    verdict: "Verdict"

    def as_dict(self) -> dict[str, Any]:
        return {
            "models": [{"name": n, **asdict(f)} for n, f in zip(self.names, self.footprints, strict=True)],
            "provider": self.provider,
            "latency": [asdict(comparison) for comparison in self.sweep],
            "against_itself": asdict(self.null.comparison) | {"passed": self.null.passed},
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
        widths = [max(len(row[column]) for row in rows) for column in range(4)]
        lines = [
            "  ".join(
                [row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))]
            ).rstrip()
            for row in rows
        ]
        judged = self.sweep[0]
        conditions = f"{self.provider}, threads {judged.threads}, {100 * judged.kept:.0f} % of the runs undisturbed"
        return "\n".join(
            [*lines, "", f"{conditions}; {_itself(self.null)}", f"{self.verdict_word}: {self.verdict.reason}"]
        )

    @property
    def verdict_word(self) -> str:
        return self.verdict.outcome.value

    def failure(self) -> AtopipeError | None:
        """What the verdict makes of the exit code; None for a pass."""
        kind = {"fail": GateFailed, "inconclusive": Inconclusive}.get(self.verdict_word)
        return kind(f"{self.verdict_word}: {self.verdict.reason}") if kind else None


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
    from atopipe.validate.latency import compare_latency, null_test, speedup_gate

    where = Where(PROVIDERS[provider], threads)
    footprints = (measure_footprint(first, **asdict(where)), measure_footprint(second, **asdict(where)))
    images = _images(first, second, max(IMAGES, *batches), where, seed)
    null = null_test(first, images, batch=batches[0], budget_s=NULL_SHARE * seconds, seed=seed, **asdict(where))
    sweep = tuple(
        compare_latency(first, second, images, batch=batch, budget_s=seconds, seed=seed, **asdict(where))
        for batch in batches
    )
    verdict = judge(speedup_gate(sweep[0], min_speedup, sweep[0].doubt or null.doubt))
    return Bench((first.name, second.name), provider, footprints, sweep, null, verdict)


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
            raise SessionError(f"'{path}' answers a random image with something that is not a finite number")
    return images


def _row(name: str, first: int, second: int, unit: str) -> tuple[str, str, str, str]:
    ratio = f"{second / first:.3f}" if first > 0 else ""
    return name, f"{scaled(first)}{unit}", f"{scaled(second)}{unit}", ratio


def _latency_row(comparison: "Comparison") -> tuple[str, str, str, str]:
    shown = [milliseconds(arm.p50_ms) if arm.p50_ms else "" for arm in (comparison.first, comparison.second)]
    ratio = comparison.ratio
    interval = f"{ratio.estimate:.3f} [{ratio.low:.3f}, {ratio.high:.3f}]" if ratio else ""
    return f"p50 at batch {comparison.batch}", shown[0], shown[1], interval


def _itself(null: "NullTest") -> str:
    ratio = null.comparison.ratio
    return f"the first against itself: {ratio.estimate:.3f} [{ratio.low:.3f}, {ratio.high:.3f}]" if ratio else "no A/A"
