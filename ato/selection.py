"""From scores of groups to the mask that is frozen: deterministic, aligned, and within every budget."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from atopipe.ato.groups import Groups
from atopipe.ato.recipe import Align
from atopipe.ato.resources import Cost

FINEST_AUTO, COARSEST_AUTO, AUTO_STEPS = 4, 16, 8


class BudgetError(ValueError):
    """A budget that no mask can meet."""


@dataclass(frozen=True, eq=False)
class Budget:
    """The delivered network may have at most `target` times the dense `cost`; `name` as users know it."""

    name: str
    cost: Cost
    target: float

    def holds(self, widths: Tensor) -> bool:
        """Whether a network of these widths is within the budget."""
        return float(self.cost(widths)) <= self.target * self.cost.dense


def step_sizes(sizes: Sequence[int], align: Align) -> list[int]:
    """The width step of each set: `align`, halved until the set has at least two steps and whole ones only.

    "auto" takes the widest of 16, 8 and 4 channels that still leaves a set eight steps: vector units work on 4 to 16
    channels at once, so that widths between two steps cost what the next step costs.
    """
    return [_step(size, _auto(size) if align == "auto" else align) for size in sizes]


def _auto(size: int) -> int:
    step = COARSEST_AUTO
    while step > FINEST_AUTO and step * AUTO_STEPS > size:
        step //= 2
    return step


def _step(size: int, align: int) -> int:
    while align > 1 and (size % align or size < 2 * align):
        align //= 2
    return max(align, 1)


def aligned(widths: Tensor, steps: Tensor) -> Tensor:
    """Widths moved up to the next step, at least one step; the gradient passes unchanged. Both [sets]."""
    stepped = (widths / steps).ceil().clamp(min=1) * steps
    return widths + (stepped - widths).detach()


def reachable_minimum(groups: Groups, cost: Cost, align: Align) -> float:
    """The smallest possible cost as a fraction of the dense one: every set at one width step."""
    return float(cost.ratio(torch.tensor(step_sizes(groups.sizes, align), dtype=torch.float64)))


def check_budgets(groups: Groups, budgets: Sequence[Budget], align: Align) -> None:
    """Raises BudgetError, naming the reachable minimum, for a target (fraction of the dense cost) below it."""
    for budget in budgets:
        minimum = reachable_minimum(groups, budget.cost, align)
        if budget.target < minimum:
            raise BudgetError(
                f"target {budget.target:g} cannot be reached: with widths in steps of {_described(groups, align)} channels "
                f"the network keeps at least {minimum:.3f} of its {budget.name}; raise the target or lower align"
            )


def _described(groups: Groups, align: Align) -> str:
    steps = sorted(set(step_sizes(groups.sizes, align)))
    return f"{steps[0]}" if len(steps) == 1 else f"{steps[0]} to {steps[-1]}"


def select_widths(scores: Tensor, groups: Groups, budgets: Sequence[Budget], align: Align) -> Tensor:
    """The widths [sets] that the scores [G] are worth, within every budget.

    Widths move in steps of `step_sizes`, and no set falls below one step. With a set's scores sorted, a step's worth
    is the mean score of its groups; steps are bought best first, skipping what no longer fits, until nothing fits: so
    the tightest budget is left unused by less than the cheapest step. Ties are broken by position. Raises BudgetError when
    even one step per set is too much.
    """
    check_budgets(groups, budgets, align)
    steps = step_sizes(groups.sizes, align)
    widths = torch.tensor(steps, dtype=torch.float64)
    for index in _steps_by_worth(groups.split(scores.detach().cpu().double()), steps):
        wider = widths.clone()
        wider[index] += steps[index]
        if all(budget.holds(wider) for budget in budgets):
            widths = wider
    return widths


def _steps_by_worth(scores: Sequence[Tensor], steps: Sequence[int]) -> list[int]:
    """The set that each width step beyond a set's first belongs to, the step with the best mean score first."""
    ranked = [values.sort(descending=True).values for values in scores]
    worths = [values.view(-1, step).mean(1)[1:] for values, step in zip(ranked, steps, strict=True)]
    owners = torch.cat([torch.full((len(worth),), i) for i, worth in enumerate(worths)])
    return list(map(int, owners[torch.cat(worths).sort(descending=True, stable=True).indices]))


def best_groups(ranking: Tensor, groups: Groups, widths: Tensor) -> Tensor:
    """The 0/1 mask [G] that keeps, in each set, the `width` groups that rank highest; ties by position."""
    masks = []
    for part, width in zip(groups.split(ranking.detach().cpu().double()), widths, strict=True):
        order = part.sort(descending=True, stable=True).indices
        masks.append(torch.zeros(len(part)).index_fill(0, order[: int(width)], 1.0))
    return torch.cat(masks)
