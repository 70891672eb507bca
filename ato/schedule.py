"""When a run does what: phases, learning rate and budget as pure functions of the step (no heavy imports here)."""

import math
from dataclasses import dataclass
from enum import StrEnum

from atopipe.ato.recipe import PhaseSettings


class ScheduleError(ValueError):
    """A run that is too short to have phases."""


class Phase(StrEnum):
    """The phases of a run, in order; the mask is frozen where the search ends."""

    DENSE = "dense"
    SEARCH = "search"
    DECAY = "decay"
    SMALL = "small"


@dataclass(frozen=True)
class Schedule:
    """Step numbers at which the phases end; `total` steps in all. Search and decay last at least one step."""

    dense_end: int
    search_end: int
    decay_end: int
    total: int

    @staticmethod
    def of(phases: PhaseSettings, total: int) -> "Schedule":
        """Place the phase fractions on `total` steps; raises ScheduleError when there are fewer than two."""
        if total < 2:
            raise ScheduleError(
                f"the run has {total} training step, but must have at least 2; raise epochs or lower batch_size"
            )
        freeze = min(max(round((phases.dense + phases.search) * total), 1), total - 1)
        dense = min(round(phases.dense * total), freeze - 1)
        decay = min(max(round((phases.dense + phases.search + phases.decay) * total), freeze + 1), total)
        return Schedule(dense, freeze, decay, total)

    def phase(self, step: int) -> Phase:
        """The phase that step number `step` (from 0) belongs to."""
        ends = {Phase.DENSE: self.dense_end, Phase.SEARCH: self.search_end, Phase.DECAY: self.decay_end}
        return next((phase for phase, end in ends.items() if step < end), Phase.SMALL)

    def controller_steps(self, every: int, least: int = 1) -> range:
        """The steps after which the controller takes one too: every `every`-th of the search, its last one included.

        More often where they would be fewer than `least`, at most after every step.
        """
        every = max(1, min(every, (self.search_end - self.dense_end) // least))
        first = self.dense_end + (self.search_end - 1 - self.dense_end) % every
        return range(first, self.search_end, every)

    def search_progress(self, step: int) -> float:
        """The part of the search that is over, in [0, 1]."""
        return min(max((step - self.dense_end) / (self.search_end - self.dense_end), 0.0), 1.0)


def learning_rate_factor(step: int, total: int, warmup: float, held_until: int = 0) -> float:
    """Linear warm-up over the fraction `warmup` of the run, then a cosine that ends at zero after the last step.

    In between it stays at 1 until step `held_until`.
    """
    rise = warmup * total
    if step < rise:
        return (step + 1) / (math.floor(rise) + 1)
    fall = max(rise, min(held_until, total - 1))
    return 0.5 * (1 + math.cos(math.pi * max(step - fall, 0.0) / (total - fall)))


def annealed_ratio(start: float, progress: float, anneal: float) -> float:
    """A limit during the search, in units of itself: from `start` to 1, geometrically, over the fraction `anneal`."""
    done = 1.0 if anneal == 0 else min(progress / anneal, 1.0)
    return float(start ** (1 - done))
