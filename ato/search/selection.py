"""From scores of groups to the mask that is frozen: deterministic, aligned, and within every budget."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from atopipe.ato.groups import Groups
from atopipe.ato.recipe import Align as Alignment
from atopipe.ato.search.budget import Budget, BudgetError
from atopipe.ato.search.cost import Cost, kept_fraction

FINEST_AUTO, COARSEST_AUTO, AUTO_STEPS = 4, 16, 8
WidthSteps = tuple[int, ...]
Align = Alignment | WidthSteps  # in channels; or, as measured on a device, the width step of each set in groups


def step_sizes(groups: Groups, align: Align) -> list[int]:
    """The width step of each set in groups: as many as make `align` channels, or what comes nearest below.

    It is halved until it divides the set into at least two steps. "auto" takes the widest of 16, 8 and 4 channels that
    still leaves a set eight steps: vector units work on 4 to 16 channels at once, so that widths between two steps cost
    what the next step costs.
    """
    if isinstance(align, tuple):
        return list(align)
    return [width_step(s.size, s.channels_per_group, align) for s in groups.sets]


def narrowest_widths(groups: Groups, align: Align) -> Tensor:
    """Every set at one width step, float64 [sets]: the smallest network there is."""
    return torch.tensor(step_sizes(groups, align), dtype=torch.float64)


def width_step(size: int, channels_per_group: int, align: Alignment) -> int:
    """The step, in groups, of a set of `size` groups that are `channels_per_group` channels each."""
    wanted = _auto(size * channels_per_group) if align == "auto" else align
    step = wanted // math.gcd(wanted, channels_per_group)
    while step > 1 and (size % step or size < 2 * step):
        step //= 2
    return step


def _auto(channels: int) -> int:
    step = COARSEST_AUTO
    while step > FINEST_AUTO and step * AUTO_STEPS > channels:
        step //= 2
    return step


def aligned(widths: Tensor, steps: Tensor) -> Tensor:
    """Widths moved up to the next step, at least one step; the gradient passes unchanged. Both [sets]."""
    stepped = (widths / steps).ceil().clamp(min=1) * steps
    return widths + (stepped - widths).detach()


def reachable_minimum(groups: Groups, cost: Cost, align: Align) -> float:
    """The smallest possible cost as a fraction of the dense one: every set at one width step."""
    return kept_fraction(cost, narrowest_widths(groups, align))


def check_budgets(groups: Groups, budgets: Sequence[Budget], align: Align) -> None:
    """Raises BudgetError for a limit below the reachable minimum, which it names, or above what the dense network has.

    A limit above that asks for nothing: most likely a wrong unit.
    """
    narrowest = narrowest_widths(groups, align)
    for budget in budgets:
        if budget.limit > budget.cost.dense:
            raise BudgetError(
                f"target {_amount(budget.limit)} {budget.cost.unit} is more than the dense network has: "
                f"give less than {_amount(budget.cost.dense)} {budget.cost.unit}"
            )
        if not budget.holds(narrowest):
            least = math.ceil(1e4 * reachable_minimum(groups, budget.cost, align)) / 1e4
            remedy = "raise the target" if align == 1 else "raise the target or lower align"
            aligned_to = (
                "the widths efficient on the device" if isinstance(align, tuple) else f"widths aligned to {align}"
            )
            raise BudgetError(
                f"target {budget.limit / budget.cost.dense:.4g} ({_amount(budget.limit)} {budget.cost.unit}) cannot be "
                f"reached: with {aligned_to} the network keeps from {least:.4f} "
                f"({_amount(least * budget.cost.dense)}) to 1 of its {budget.cost.unit}; {remedy}"
            )


def _amount(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def select_widths(scores: Tensor, groups: Groups, budgets: Sequence[Budget], align: Align) -> Tensor:
    """The widths [sets] that the scores [G] are worth, within every budget.

    Widths move in steps of `step_sizes`, and no set falls below one step. With a set's scores sorted, a step's worth
    is the mean score of its groups; steps are bought best first, skipping what no longer fits, until nothing fits: so
    the tightest budget is left unused by less than the cheapest step. Ties are broken by position. Raises BudgetError
    when even one step per set is too much.
    """
    check_budgets(groups, budgets, align)
    steps, widths = step_sizes(groups, align), narrowest_widths(groups, align)
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


def choose_mask(scores: Tensor, groups: Groups, budgets: Sequence[Budget], align: Align) -> Tensor:
    """The deterministic 0/1 mask [G], on the CPU, that the scores [G] are worth within every budget."""
    return best_groups(scores, groups, select_widths(scores, groups, budgets, align))


ChooseMask = Callable[[Tensor, Groups, Sequence[Budget], Align], Tensor]


def kept_fractions(mask: Tensor, groups: Groups, budgets: Sequence[Budget], align: Align) -> dict[str, float]:
    """What a mask [G] keeps of each budgeted cost, widths moved up to whole steps: fractions of dense, by cost name."""
    widths = aligned(groups.widths(mask.cpu()).double(), narrowest_widths(groups, align))
    return {budget.cost.name: kept_fraction(budget.cost, widths) for budget in budgets}


def best_groups(ranking: Tensor, groups: Groups, widths: Tensor) -> Tensor:
    """The 0/1 mask [G] that keeps, in each set, the `width` groups that rank highest; ties by position."""
    masks = []
    for part, width in zip(groups.split(ranking.detach().cpu().double()), widths, strict=True):
        order = part.sort(descending=True, stable=True).indices
        masks.append(torch.zeros(len(part)).index_fill(0, order[: int(width)], 1.0))
    return torch.cat(masks)
