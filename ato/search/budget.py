"""What a delivered network may cost at most, and how far a network of given widths is from it."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from atopipe.ato.schedule import annealed_ratio
from atopipe.ato.search.cost import Cost

SMALLEST_RATIO = 1e-6


class BudgetError(ValueError):
    """A budget that no mask can meet."""


@dataclass(frozen=True, eq=False)
class Budget:
    """The delivered network may have at most `limit` of `cost`, in the cost's own unit."""

    cost: Cost
    limit: float

    @staticmethod
    def of_dense(cost: Cost, fraction: float) -> "Budget":
        """At most `fraction` of what the dense network costs."""
        return Budget(cost, fraction * cost.dense)

    def ratio(self, widths: Tensor) -> Tensor:
        """The cost at the widths [sets] in units of the limit; differentiable."""
        return self.cost(widths) / self.limit

    def holds(self, widths: Tensor) -> bool:
        """Whether a network of these widths is within the budget."""
        return float(self.cost(widths)) <= self.limit

    def to(self, device: torch.device) -> "Budget":
        """The same budget on another device."""
        return Budget(self.cost.to(device), self.limit)


def search_penalty(
    budgets: Sequence[Budget], widths: Tensor, progress: float, *, anneal: float, margin: float
) -> Tensor:
    """The penalty R of the budget that is exceeded most, or least undercut: a slack one must not pull widths up again.

    `progress`: the part of the search that is over; over the fraction `anneal` of it every limit falls from the dense
    cost. `margin` is a fraction of the dense cost. A scalar.
    """
    excesses, penalties = [], []
    for budget in budgets:
        allowed = annealed_ratio(budget.cost.dense / budget.limit, progress, anneal)
        excess = budget.ratio(widths) / allowed
        excesses.append(excess.detach())
        penalties.append(budget_penalty(excess, margin * budget.cost.dense / (budget.limit * allowed)))
    tightest = torch.stack(excesses).argmax().view(1)
    return torch.stack(penalties).gather(0, tightest)[0]


def budget_penalty(excess: Tensor, margin: float) -> Tensor:
    """The penalty R of ATO (section 3.3 and its released code): a log distance to the budget, flat within `margin`.

    R = log(max(excess, 1 + margin)) above the limit, -log(min(excess, 1 - margin)) below it; `excess` and `margin` are
    in units of the limit. Scalar, finite.
    """
    above = torch.log(excess.clamp(min=1 + margin))
    below = -torch.log(excess.clamp(min=SMALLEST_RATIO, max=max(1 - margin, SMALLEST_RATIO)))
    return torch.where(excess > 1, above, below)
