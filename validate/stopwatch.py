"""Single runs of a model, timed by the clock on the wall and by the processor's."""

import itertools
import time
from collections.abc import Callable
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from atopipe.validate.session import CPU, Session

Images = NDArray[np.float32]

FINE_CLOCK = 1e-4  # seconds
WARM_RUNS = 10  # runs per window of the warm-up
WARM_CHANGE = 0.02  # two windows whose medians differ by less are taken as warm
WARM_SECONDS = 0.5  # at least, within its share of the budget


def processor_clock(threads: int) -> Callable[[], float]:
    """Return the clock that stands still while a run waits for its processor, or else the clock on the wall.

    With one thread, ONNX Runtime works in the calling thread, and no other thread's work is counted. A clock that ticks
    more coarsely than `FINE_CLOCK` (every 15.6 ms on Windows) cannot tell which run was disturbed: with the clock on
    the wall in its place every run counts as undisturbed.
    """
    name: Literal["thread_time", "process_time"] = "thread_time" if threads == 1 else "process_time"
    clock: Callable[[], float] = getattr(time, name)
    return clock if time.get_clock_info(name).resolution <= FINE_CLOCK else time.perf_counter


class Stopwatch:
    """Times single runs, each on the next batch of the images."""

    def __init__(self, images: Images, batch: int, threads: int) -> None:
        starts = range(0, len(images) - batch + 1, batch)
        self._batches = [np.ascontiguousarray(images[start : start + batch]) for start in starts]
        self._order = itertools.cycle(range(len(self._batches)))
        self._prepared: dict[tuple[int, int], Callable[[], object]] = {}
        self._processor_clock = processor_clock(threads)

    def time(self, session: Session) -> tuple[float, float]:
        """Return wall and processor time of one run, in seconds."""
        batch = next(self._order)
        place = id(session), batch
        if place not in self._prepared:
            self._prepared[place] = session.prepare(self._batches[batch])
        run = self._prepared[place]
        # Who computes elsewhere may wait without its processor: only the clock on the wall counts.
        clock = self._processor_clock if session.provider == CPU else time.perf_counter
        wall, cpu = time.perf_counter(), clock()
        run()
        return time.perf_counter() - wall, clock() - cpu


def warm_up(stopwatch: Stopwatch, session: Session, budget_s: float) -> float:
    """Run until two windows have the same median, or the budget is spent; return the last median in seconds."""
    start, before = time.perf_counter(), np.inf
    while True:
        median = float(np.median([stopwatch.time(session)[0] for _ in range(WARM_RUNS)]))
        elapsed = time.perf_counter() - start
        stable = abs(median - before) <= WARM_CHANGE * median
        if elapsed >= budget_s or (stable and elapsed >= WARM_SECONDS):
            return median
        before = median
