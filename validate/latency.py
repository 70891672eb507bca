"""Latency of ONNX models against each other, on a machine that others use too.

One model timed after the other compares the minutes rather than the models. So their runs are interleaved, in blocks of
all models in a random order and then in its reverse (A B B A, or C A B B A C), which cancels a drift of the machine;
the first runs after each switch are thrown away, for they find the other model's data in the cache; and a run that lost
its processor is dropped, which shows in its wall time exceeding its processor time. Each block gives one ratio of
medians for two models; the interval is a bootstrap over blocks.
"""

import contextlib
import gc
import itertools
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from atopipe.validate.gates import Bound, Gate
from atopipe.validate.session import CPU, Session, open_session
from atopipe.validate.stopwatch import Images, Stopwatch, warm_up
from atopipe.validate.timing_statistics import Interval, block_ratios, bootstrap_median, percentile, undisturbed

DISCARDED = 2  # runs after each switch of the model
MIN_BLOCKS = 5  # measured whatever the budget; fewer ratios have no interval worth the name
GOAL_BLOCKS = 10  # runs per switch are chosen so that this many blocks fit the budget
MIN_KEPT = 0.8  # of the counted runs undisturbed, below which the machine was too busy to conclude anything
MAX_RUNS = 10  # counted runs per switch
WARM_SHARE = 0.1  # of the budget, at most, for the warm-up of one model
SAME = 0.02  # how far from 1 the ratio of a model to itself may be


class LatencyError(Exception):
    """The measurement cannot be made. One sentence for the user."""


@dataclass(frozen=True)
class LatencySummary:
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

    first: LatencySummary
    second: LatencySummary
    ratio: Interval | None
    blocks: int  # that entered the ratio
    kept: float  # fraction of the counted runs that were undisturbed
    threads: int
    batch: int
    seconds: float  # that the whole measurement took

    @property
    def inconclusive_because(self) -> str | None:
        """Why nothing may be concluded from the measurement, as a clause; None where something may."""
        if self.ratio is None:
            return f"only {self.blocks} blocks of runs were not preempted"
        if self.kept < MIN_KEPT:
            return f"only {100 * self.kept:.0f} % of timed runs were not preempted"
        return None


@dataclass(frozen=True)
class InterleavedTimings:
    """Every counted run of the models: wall and processor time in seconds, its block and its model, each [N]."""

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
            first=_summary(wall[~is_second], block[~is_second], generator),
            second=_summary(wall[is_second], block[is_second], generator),
            ratio=bootstrap_median(ratios, generator) if len(ratios) >= MIN_BLOCKS else None,
            blocks=len(ratios),
            kept=float(keep.sum() / own.sum()),
            threads=self.threads,
            batch=self.batch,
            seconds=self.seconds,
        )


def time_interleaved(
    models: Sequence[Path],
    images: Images,
    *,
    provider: str = CPU,
    threads: int = 1,
    batch: int = 1,
    budget_s: float = 10.0,
    seed: int = 0,
) -> InterleavedTimings:
    """Time ONNX models against each other, their runs interleaved.

    Args:
        models: the files, two or more; the same one twice for an `AATest`.
        images: real images [N, C, H, W], preprocessed, N >= batch; the runs go through them, batch by batch.
        provider: where they run; beside the CPU, images and logits stay in its memory.
        threads: of each model. With more than one, a run's processor time is the sum over them, so that a loss of
            the processor shows only when it is long.
        batch: images per run.
        budget_s: seconds to spend, in which `MIN_BLOCKS` blocks are measured even if they take longer.
        seed: of the order within the blocks and of the bootstrap.

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
        runs = runs_per_switch(run_s, budget_s)
        rows = _alternate(stopwatch, sessions, runs, start + budget_s, np.random.default_rng(seed))
    wall, cpu, block, model = (np.array(column) for column in zip(*rows, strict=True))
    return InterleavedTimings(wall, cpu, block, model, threads, batch, time.perf_counter() - start, seed)


@dataclass(frozen=True)
class AATest:
    """A model compared with itself; where its ratio is not 1, this machine cannot compare models."""

    comparison: Comparison
    tolerance: float = SAME

    @property
    def passed(self) -> bool:
        """Whether the interval of the ratio contains a number within the tolerance of 1."""
        ratio = self.comparison.ratio
        return ratio is not None and ratio.low <= 1 + self.tolerance and ratio.high >= 1 - self.tolerance

    @property
    def inconclusive_because(self) -> str | None:
        """Why this machine cannot compare models, as a clause; None where it can."""
        if self.passed:
            return None
        ratio = self.comparison.ratio
        found = f"{ratio.estimate:.3f} times its own latency" if ratio else "no stable latency"
        return f"in an A/A test on this machine a model showed {found}"


def speedup_gate(comparison: Comparison, limit: float, inconclusive_because: str | None) -> Gate:
    """Return the gate on dense latency over shrunk: the inverse of the ratio, and so are the ends of its interval."""
    ratio = comparison.ratio
    value, interval = (1 / ratio.estimate, (1 / ratio.high, 1 / ratio.low)) if ratio else (None, None)
    return Gate("latency.speedup", value, limit, Bound.AT_LEAST, interval, inconclusive_because)


def runs_per_switch(run_s: float, budget_s: float) -> int:
    """Return the counted runs after each switch of the model, such that `GOAL_BLOCKS` blocks fit the budget.

    Args:
        run_s: one run of each model, in seconds, added up; in a block each model comes twice.
        budget_s: seconds for all blocks.
    """
    affordable = budget_s / (GOAL_BLOCKS * 2 * run_s) - DISCARDED
    return int(np.clip(affordable, 2, MAX_RUNS))


def _alternate(
    stopwatch: Stopwatch, sessions: Sequence[Session], runs: int, end: float, generator: np.random.Generator
) -> list[tuple[float, float, int, int]]:
    """Measure blocks until the clock shows `end`, and at least `MIN_BLOCKS` of them: wall, processor, block, model."""
    rows: list[tuple[float, float, int, int]] = []
    for block in itertools.count():
        if block >= MIN_BLOCKS and time.perf_counter() >= end:
            break
        order = [int(model) for model in generator.permutation(len(sessions))]
        for model in (*order, *reversed(order)):
            timed = [stopwatch.time(sessions[model]) for _ in range(DISCARDED + runs)]
            rows.extend((wall, cpu, block, model) for wall, cpu in timed[DISCARDED:])
    return rows


def _summary(seconds: NDArray[np.float64], block: NDArray[np.int64], generator: np.random.Generator) -> LatencySummary:
    milliseconds = 1e3 * seconds
    p50, p90 = percentile(milliseconds, 0.5), percentile(milliseconds, 0.9)
    medians = np.array([np.median(milliseconds[block == index]) for index in np.unique(block)], dtype=np.float64)
    if p50 is None or len(medians) < MIN_BLOCKS:
        return LatencySummary(len(seconds), p50, p90)
    typical = bootstrap_median(medians, generator)
    return LatencySummary(len(seconds), p50, p90, (min(typical.low, p50), max(typical.high, p50)))


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
