"""Latency of ONNX models against each other, on a machine that others use too.

One model timed after the other compares the minutes rather than the models. So they are run in turns, in blocks of all
models in an order by lot and then in its reverse (A B B A, or C A B B A C), which cancels a drift of the machine; the
first runs after each switch are thrown away, for they find the other model's data in the cache; and a run that lost its
processor is dropped, which shows in its wall time exceeding its processor time. Each block gives one ratio of medians
for two models; the interval is a bootstrap over blocks.
"""

import contextlib
import gc
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from atopipe.validate.gates import Bound, Gate
from atopipe.validate.session import CPU, Session, open_session
from atopipe.validate.timing_statistics import Interval, block_ratios, bootstrap_median, percentile, undisturbed

Images = NDArray[np.float32]

DISCARDED = 2  # runs after each switch of the model
MIN_BLOCKS = 5  # measured whatever the budget; fewer ratios have no interval worth the name
GOAL_BLOCKS = 10  # runs per turn are chosen so that this many blocks fit the budget
MIN_KEPT = 0.8  # of the counted runs undisturbed, below which the machine was too busy to conclude anything
MAX_RUNS = 10  # counted runs per turn
WARM_RUNS = 10  # runs per window of the warm-up
WARM_CHANGE = 0.02  # two windows whose medians differ by less are taken as warm
WARM_SECONDS = 0.5  # at least, within its share of the budget
WARM_SHARE = 0.1  # of the budget, at most, for the warm-up of one model


class LatencyError(Exception):
    """The measurement cannot be made. One sentence for the user."""


@dataclass(frozen=True)
class Arm:
    """One model's times in milliseconds, undisturbed runs only; None where the runs are too few to know.

    `interval_ms`: 95 % interval of the median, a bootstrap over blocks widened to contain `p50_ms`.
    """

    runs: int
    p50_ms: float | None
    p90_ms: float | None
    interval_ms: tuple[float, float] | None = None


@dataclass(frozen=True)
class Comparison:
    """`ratio` is second over first with its 95 % interval, or None if too few blocks were left undisturbed."""

    first: Arm
    second: Arm
    ratio: Interval | None
    blocks: int  # that entered the ratio
    kept: float  # fraction of the counted runs that were undisturbed
    threads: int
    batch: int
    seconds: float  # that the whole measurement took

    @property
    def doubt(self) -> str | None:
        """Why nothing may be concluded from the measurement, as a clause; None where something may."""
        if self.ratio is None:
            return f"only {self.blocks} blocks of runs were left undisturbed"
        if self.kept < MIN_KEPT:
            return f"only {100 * self.kept:.0f} % of the runs kept their processor"
        return None


@dataclass(frozen=True)
class Turns:
    """Every counted run of models that were timed in turns: times in seconds, its block and its model, each [N]."""

    wall: NDArray[np.float64]
    cpu: NDArray[np.float64]
    block: NDArray[np.int64]
    model: NDArray[np.int64]
    threads: int
    batch: int
    seconds: float  # that the whole measurement took
    seed: int

    def compare(self, first: int, second: int) -> Comparison:
        """Return what the runs say of two of the models, by their positions."""
        generator = np.random.default_rng(self.seed)
        own = (self.model == first) | (self.model == second)
        keep = own & undisturbed(self.wall, self.cpu)
        wall, block, is_second = self.wall[keep], self.block[keep], self.model[keep] == second
        ratios = block_ratios(wall, block, is_second)
        return Comparison(
            first=_arm(wall[~is_second], block[~is_second], generator),
            second=_arm(wall[is_second], block[is_second], generator),
            ratio=bootstrap_median(ratios, generator) if len(ratios) >= MIN_BLOCKS else None,
            blocks=len(ratios),
            kept=float(keep.sum() / own.sum()),
            threads=self.threads,
            batch=self.batch,
            seconds=self.seconds,
        )


def time_in_turns(
    models: Sequence[Path],
    images: Images,
    *,
    provider: str = CPU,
    threads: int = 1,
    batch: int = 1,
    budget_s: float = 10.0,
    seed: int = 0,
) -> Turns:
    """Time ONNX models in turns.

    Args:
        models: the files, two or more.
        images: real images [N, C, H, W], preprocessed, N >= batch; the runs go through them in turn.
        provider: where they run; beside the CPU, images and logits stay in its memory.
        threads: of each model. With more than one, a run's processor time is the sum over them, so that a loss of
            the processor shows only when it is long.
        batch: images per run.
        budget_s: seconds to spend, in which `MIN_BLOCKS` blocks are measured even if they take longer.
        seed: of the order of the turns and of the bootstrap.

    Raises:
        LatencyError: there are fewer images than one batch needs.
        SessionError: a file is no model that runs on these images.
    """
    start = time.perf_counter()
    if not 1 <= batch <= len(images):
        raise LatencyError(f"a batch of {batch} cannot be made from {len(images)} images: choose 1 to {len(images)}")
    stopwatch = Stopwatch(images, batch, threads)
    sessions = [open_session(model, provider=provider, threads=threads) for model in models]
    with _no_garbage_collection():
        run_s = sum(warm_up(stopwatch, session, WARM_SHARE * budget_s) for session in sessions)
        turn = runs_per_turn(run_s, budget_s)
        rows = _alternate(stopwatch, sessions, turn, start + budget_s, np.random.default_rng(seed))
    wall, cpu, block, model = (np.array(column) for column in zip(*rows, strict=True))
    return Turns(wall, cpu, block, model, threads, batch, time.perf_counter() - start, seed)


def compare_latency(
    first: Path,
    second: Path,
    images: Images,
    *,
    provider: str = CPU,
    threads: int = 1,
    batch: int = 1,
    budget_s: float = 10.0,
    seed: int = 0,
) -> Comparison:
    """Time two ONNX models by `time_in_turns`; the ratio is the second's time over the first's."""
    models = (first, second)
    turns = time_in_turns(models, images, provider=provider, threads=threads, batch=batch, budget_s=budget_s, seed=seed)
    return turns.compare(0, 1)


@dataclass(frozen=True)
class NullTest:
    """A model measured against itself; where its ratio is not 1, the machine is unfit to compare models."""

    comparison: Comparison
    tolerance: float

    @property
    def passed(self) -> bool:
        """Whether the interval of the ratio contains a number within the tolerance of 1."""
        ratio = self.comparison.ratio
        return ratio is not None and ratio.low <= 1 + self.tolerance and ratio.high >= 1 - self.tolerance

    @property
    def doubt(self) -> str | None:
        """Why this machine cannot compare models, as a clause; None where it can."""
        if self.passed:
            return None
        ratio = self.comparison.ratio
        found = f"{ratio.estimate:.3f} times its own latency" if ratio else "no stable latency"
        return f"measured against itself, a model showed {found} on this machine"


def null_test(
    model: Path,
    images: Images,
    *,
    provider: str = CPU,
    threads: int = 1,
    batch: int = 1,
    budget_s: float = 5.0,
    seed: int = 0,
    tolerance: float = 0.02,
) -> NullTest:
    """Measure a model against itself by `compare_latency`, to find out whether this machine can compare at all."""
    comparison = compare_latency(
        model, model, images, provider=provider, threads=threads, batch=batch, budget_s=budget_s, seed=seed
    )
    return NullTest(comparison, tolerance)


def speedup_gate(comparison: Comparison, limit: float, doubt: str | None) -> Gate:
    """Return the gate on dense latency over shrunk: the inverse of the ratio, and so are the ends of its interval."""
    ratio = comparison.ratio
    value, interval = (1 / ratio.estimate, (1 / ratio.high, 1 / ratio.low)) if ratio else (None, None)
    return Gate("latency.speedup", value, limit, Bound.AT_LEAST, interval, doubt)


class Stopwatch:
    """Times single runs, each on the next batch of the images."""

    def __init__(self, images: Images, batch: int, threads: int) -> None:
        starts = range(0, len(images) - batch + 1, batch)
        self._batches = [np.ascontiguousarray(images[start : start + batch]) for start in starts]
        self._turns = itertools.cycle(range(len(self._batches)))
        self._prepared: dict[tuple[int, int], Callable[[], object]] = {}
        # With one thread, ONNX Runtime works in the calling thread, and no other thread's work is counted.
        self._cpu_clock = time.thread_time if threads == 1 else time.process_time

    def time(self, session: Session) -> tuple[float, float]:
        """Return wall and processor time of one run, in seconds."""
        turn = next(self._turns)
        place = id(session), turn
        if place not in self._prepared:
            self._prepared[place] = session.prepare(self._batches[turn])
        run = self._prepared[place]
        # Who computes elsewhere may wait without its processor: only the clock on the wall counts.
        clock = self._cpu_clock if session.provider == CPU else time.perf_counter
        wall, cpu = time.perf_counter(), clock()
        run()
        return time.perf_counter() - wall, clock() - cpu


def warm_up(stopwatch: Stopwatch, session: Session, budget_s: float) -> float:
    """Run until two windows have the same median, or the budget is spent; return the last median in seconds."""
    start = time.perf_counter()
    before = np.inf
    while True:
        median = float(np.median([stopwatch.time(session)[0] for _ in range(WARM_RUNS)]))
        elapsed = time.perf_counter() - start
        stable = abs(median - before) <= WARM_CHANGE * before
        if elapsed >= budget_s or (stable and elapsed >= WARM_SECONDS):
            return median
        before = median


def runs_per_turn(run_s: float, budget_s: float) -> int:
    """Return the counted runs of one turn, such that `GOAL_BLOCKS` blocks fit the budget.

    Args:
        run_s: one run of each model, in seconds, added up; a block has two turns of each.
        budget_s: seconds for all blocks.
    """
    affordable = budget_s / (GOAL_BLOCKS * 2 * run_s) - DISCARDED
    return int(np.clip(affordable, 2, MAX_RUNS))


def _alternate(
    stopwatch: Stopwatch, sessions: Sequence[Session], turn: int, end: float, generator: np.random.Generator
) -> list[tuple[float, float, int, int]]:
    """Measure blocks until the clock shows `end`, and at least `MIN_BLOCKS` of them: wall, processor, block, model."""
    rows: list[tuple[float, float, int, int]] = []
    for block in itertools.count():
        if block >= MIN_BLOCKS and time.perf_counter() >= end:
            break
        order = [int(model) for model in generator.permutation(len(sessions))]
        for model in (*order, *reversed(order)):
            timed = [stopwatch.time(sessions[model]) for _ in range(DISCARDED + turn)]
            rows.extend((wall, cpu, block, model) for wall, cpu in timed[DISCARDED:])
    return rows


def _arm(seconds: NDArray[np.float64], block: NDArray[np.int64], generator: np.random.Generator) -> Arm:
    milliseconds = 1e3 * seconds
    p50, p90 = percentile(milliseconds, 0.5), percentile(milliseconds, 0.9)
    medians = np.array([np.median(milliseconds[block == index]) for index in np.unique(block)], dtype=np.float64)
    if p50 is None or len(medians) < MIN_BLOCKS:
        return Arm(len(seconds), p50, p90)
    typical = bootstrap_median(medians, generator)
    return Arm(len(seconds), p50, p90, (min(typical.low, p50), max(typical.high, p50)))


@contextlib.contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Keep Python's collector from falling into a timed run."""
    was_on = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
