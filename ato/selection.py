"""From scores of groups to the mask that is frozen: deterministic, aligned, and within the budget."""

import torch
from torch import Tensor

from atopipe.ato.groups import Groups
from atopipe.ato.resources import Cost


class BudgetError(ValueError):
    """A budget that no mask can meet."""


def step_sizes(sizes: list[int], align: int) -> list[int]:
    """The width step of each set: `align`, halved until a set has at least two steps and whole ones only."""
    return [_step(size, align) for size in sizes]


def _step(size: int, align: int) -> int:
    while align > 1 and (size % align or size < 2 * align):
        align //= 2
    return max(align, 1)


def reachable_minimum(groups: Groups, cost: Cost, align: int) -> float:
    """The smallest possible cost as a fraction of the dense one: every set at one width step."""
    return float(cost.ratio(torch.tensor(step_sizes(groups.sizes, align), dtype=torch.float64)))


def check_budget(groups: Groups, cost: Cost, target: float, align: int) -> None:
    """Raises BudgetError, naming the reachable minimum, when `target` (fraction of the dense cost) is below it."""
    minimum = reachable_minimum(groups, cost, align)
    if target < minimum:
        raise BudgetError(
            f"target {target:g} cannot be reached: with widths in steps of up to {align} channels the network keeps at "
            f"least {minimum:.3f} of its FLOPs; raise the target or lower align"
        )


def select_mask(scores: Tensor, groups: Groups, cost: Cost, target: float, align: int) -> Tensor:
    """The 0/1 mask [G] that keeps the best-scored groups at a cost of at most `target` * dense.

    Within a set the groups with the highest scores are kept; widths move in steps of `align` where the set is wide
    enough, and no set falls below one step. A step's worth is its mean score; steps are bought best first, skipping
    what no longer fits, until nothing fits: so the cost is below the budget by less than the cheapest step left.
    Ties are broken by position. Raises BudgetError when even one step per set is too much.
    """
    check_budget(groups, cost, target, align)
    steps = step_sizes(groups.sizes, align)
    ranked = [part.sort(descending=True, stable=True) for part in groups.split(scores.detach().cpu().double())]
    widths = torch.tensor(steps, dtype=torch.float64)
    for index in _steps_by_worth([r.values for r in ranked], steps):
        wider = widths.clone()
        wider[index] += steps[index]
        if float(cost(wider)) <= target * cost.dense:
            widths = wider
    masks = [
        torch.zeros(len(r.indices)).index_fill(0, r.indices[: int(w)], 1.0) for r, w in zip(ranked, widths, strict=True)
    ]
    return torch.cat(masks)


def _steps_by_worth(ranked: list[Tensor], steps: list[int]) -> list[int]:
    """The set that each width step beyond a set's first belongs to, the step with the best mean score first."""
    worths = [values.view(-1, step).mean(1)[1:] for values, step in zip(ranked, steps, strict=True)]
    owners = [torch.full((len(worth),), i) for i, worth in enumerate(worths)]
    order = torch.cat(worths).sort(descending=True, stable=True).indices
    return torch.cat(owners)[order].tolist()
