"""What may be concluded from a sample of run times: pure functions of arrays and a seeded generator."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]

PREEMPTED = 1.05
"""A run that took this many times its own processor time waited for somebody else, and says nothing of the model."""

_NEEDED = {0.5: 1, 0.9: 64, 0.95: 130, 0.99: 662}
"""Sample size from which a percentile is known at 99 % confidence (MLPerf LoadGen's early-stopping rule)."""


@dataclass(frozen=True)
class Interval:
    """An estimate and the ends of its confidence interval."""

    estimate: float
    low: float
    high: float


def undisturbed(wall: Floats, cpu: Floats, limit: float = PREEMPTED) -> Flags:
    """Return which runs were not preempted, from wall and processor time [N] in the same unit."""
    return np.asarray(wall <= limit * cpu)


def percentile(samples: Floats, fraction: float) -> float | None:
    """Return the percentile 0.5, 0.9, 0.95 or 0.99 of the samples, or None where they are too few to know it."""
    return float(np.quantile(samples, fraction)) if len(samples) >= _NEEDED[fraction] else None


def block_ratios(seconds: Floats, block: NDArray[np.int64], is_second: Flags) -> Floats:
    """Return, per block which has runs of both models, median time of the second over median time of the first.

    Args:
        seconds: time of each run [N].
        block: the block each run belongs to [N].
        is_second: whether it was a run of the second model [N].
    """
    ratios = []
    for index in np.unique(block):
        first, second = seconds[(block == index) & ~is_second], seconds[(block == index) & is_second]
        if len(first) and len(second):
            ratios.append(np.median(second) / np.median(first))
    return np.array(ratios, dtype=np.float64)


def bootstrap_median(
    values: Floats, generator: np.random.Generator, *, confidence: float = 0.95, resamples: int = 4000
) -> Interval:
    """Return the median of the values [N] and its percentile-bootstrap interval (Efron, 1979)."""
    drawn = generator.choice(values, size=(resamples, len(values)), replace=True)
    tail = (1 - confidence) / 2
    low, high = np.quantile(np.median(drawn, axis=1), [tail, 1 - tail])
    return Interval(float(np.median(values)), float(low), float(high))
