"""The search for a mask, as an interface.

Every search is scores of groups -> widths within every budget -> the mask that is frozen, and differs from the others
in where its scores come from only:

- ATO: the output of a controller network, which learns while the weights do (`controller_search`);
- magnitude: the norm scales of a group, over all sets together (`score_search`, like the next two);
- uniform: the rank of a group in its own set, so that every set keeps the same share of its groups;
- random: the same share of every set, at random.

What is common to them, the way from scores to widths and from widths to a mask, is in `selection`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from atopipe.ato.execution import PLAIN, Execution
from atopipe.ato.groups import Groups
from atopipe.ato.recipe import Recipe
from atopipe.ato.search.budget import Budget
from atopipe.ato.search.selection import Align, ChooseMask, WidthSteps, choose_mask
from atopipe.ato.snapshot import Snapshot


class DivergedError(Exception):
    """The training loss, or what the controller makes of it, is no longer a number."""


@dataclass(frozen=True, eq=False)
class SearchProblem:
    """What a mask is looked for: `model` at full width, its `groups`, and the `budgets` that the mask must hold.

    `generator` gives all randomness; `execution` says how the network is run; `choose` makes the mask of the scores;
    `width_steps`: in the place of the recipe's align, where they were measured.
    """

    model: nn.Module
    groups: Groups
    budgets: Sequence[Budget]
    recipe: Recipe
    generator: torch.Generator
    execution: Execution = PLAIN
    choose: ChooseMask = choose_mask
    width_steps: WidthSteps | None = None

    @property
    def align(self) -> Align:
        """What widths are multiples of."""
        return self.recipe.align if self.width_steps is None else self.width_steps


class MaskSearch(Protocol):
    """All state of a search; the network is never changed by it."""

    def scores(self) -> Tensor:
        """What each group is worth, [G]: the higher, the sooner it is kept."""
        ...

    def step(self, images: Tensor, labels: Tensor, progress: float) -> None:
        """Learn from one batch; `progress`: the part of the search that is over, in (0, 1]."""
        ...

    def likely_mask(self) -> Tensor:
        """What would be kept if the search ended now, 0/1 [G]; it may still miss the budgets."""
        ...

    def best_mask(self) -> Tensor:
        """The deterministic 0/1 mask [G], on the CPU, that the scores are worth within every budget."""
        ...

    def snapshot(self) -> Snapshot:
        """The current state of the search."""
        ...

    def restore(self, snapshot: Snapshot) -> None:
        """Load a snapshot of a search for the same problem."""
        ...


MakeSearch = Callable[[SearchProblem], MaskSearch]
