"""From scores to the frozen mask."""

import re

import pytest
import torch
from torch import Tensor, nn

from atopipe.ato.discovery.find import find_groups
from atopipe.ato.groups import Groups
from atopipe.ato.recipe import Align
from atopipe.ato.search.budget import Budget, BudgetError
from atopipe.ato.search.cost import COSTS, flops, kept_fraction
from atopipe.ato.search.selection import (
    aligned,
    best_groups,
    check_budgets,
    reachable_minimum,
    select_widths,
    step_sizes,
    width_step,
)


@pytest.fixture(scope="module")
def resnet() -> tuple[Groups, dict[str, Budget]]:
    torchvision = pytest.importorskip("torchvision")
    model = torchvision.models.resnet18(num_classes=10)
    example = torch.zeros(1, 3, 32, 32)
    groups = find_groups(model, example, torch.Generator().manual_seed(0))
    return groups, {name: Budget.of_dense(cost(model, groups, example), 0.4) for name, cost in COSTS.items()}


def ratio(budget: Budget, widths: Tensor) -> float:
    return kept_fraction(budget.cost, widths)


@pytest.mark.parametrize("cost", ["flops", "params"])
@pytest.mark.parametrize("target", [0.15, 0.3, 0.5, 0.7, 1.0])
@pytest.mark.parametrize("align", [1, 4, 8, 16, "auto"])
def test_a_budget_is_met_and_used(
    resnet: tuple[Groups, dict[str, Budget]], cost: str, target: float, align: Align, generator: torch.Generator
) -> None:
    groups, budgets = resnet
    budget = Budget.of_dense(budgets[cost].cost, target)
    widths = select_widths(torch.randn(groups.total, generator=generator), groups, [budget], align)
    assert target - 0.005 <= ratio(budget, widths) <= target
    steps = step_sizes(groups, align)
    assert all(int(width) % step == 0 and width >= step for width, step in zip(widths, steps, strict=True))


def test_both_budgets_are_met_and_the_tighter_one_is_used(
    resnet: tuple[Groups, dict[str, Budget]], generator: torch.Generator
) -> None:
    groups, budgets = resnet
    scores = torch.randn(groups.total, generator=generator)
    for targets in ({"flops": 0.5, "params": 0.2}, {"flops": 0.2, "params": 0.9}):
        both = [Budget.of_dense(budgets[name].cost, target) for name, target in targets.items()]
        widths = select_widths(scores, groups, both, 8)
        assert all(budget.holds(widths) and budget.ratio(widths) <= 1 for budget in both)
        assert min(targets[budget.cost.name] - ratio(budget, widths) for budget in both) <= 0.005


def test_the_best_ranked_groups_of_each_set_are_kept(
    resnet: tuple[Groups, dict[str, Budget]], generator: torch.Generator
) -> None:
    groups, budgets = resnet
    scores = torch.randn(groups.total, generator=generator)
    widths = select_widths(scores, groups, [budgets["flops"]], 8)
    mask = best_groups(scores, groups, widths)
    assert torch.equal(groups.widths(mask).double(), widths)
    for part, kept in zip(groups.split(scores), groups.split(mask > 0.5), strict=True):
        assert kept.all() or part[kept].min() >= part[~kept].max()


def test_a_better_set_gets_more_width(resnet: tuple[Groups, dict[str, Budget]], generator: torch.Generator) -> None:
    groups, budgets = resnet
    scores = torch.randn(groups.total, generator=generator)
    favoured = scores + torch.cat([torch.full((n,), 10.0 * (i == 3)) for i, n in enumerate(groups.sizes)])
    assert select_widths(favoured, groups, [budgets["flops"]], 8)[3] == groups.sizes[3]
    assert select_widths(scores, groups, [budgets["flops"]], 8)[3] < groups.sizes[3]


def test_equal_scores_give_one_and_the_same_choice(resnet: tuple[Groups, dict[str, Budget]]) -> None:
    groups, budgets = resnet
    widths = [select_widths(torch.zeros(groups.total), groups, [budgets["flops"]], 8) for _ in range(2)]
    assert torch.equal(*widths)
    kept = best_groups(torch.zeros(groups.total), groups, widths[0])
    assert all(part[: int(width)].all() for part, width in zip(groups.split(kept), widths[0], strict=True))


def test_narrow_sets_take_smaller_steps() -> None:
    assert [width_step(size, 1, 8) for size in (64, 16, 8, 12, 6, 3, 1)] == [8, 8, 4, 4, 2, 1, 1]
    assert [width_step(size, 1, "auto") for size in (2048, 128, 64, 32, 16, 8, 24, 3)] == [16, 16, 8, 4, 4, 4, 4, 1]


def test_a_step_counts_channels_not_groups() -> None:
    assert width_step(size=8, channels_per_group=32, align=8) == 1
    assert width_step(size=64, channels_per_group=4, align=8) == 2
    assert width_step(size=64, channels_per_group=3, align=8) == 8


def test_aligned_widths_move_up_and_their_gradient_passes() -> None:
    widths = torch.tensor([1.0, 8.0, 9.0, 0.0], requires_grad=True)
    stepped = aligned(widths, torch.tensor([4.0, 8.0, 8.0, 4.0]))
    assert stepped.tolist() == [4.0, 8.0, 16.0, 4.0]
    stepped.backward(torch.tensor([1.0, 2.0, 3.0, 4.0]))
    assert widths.grad is not None
    assert widths.grad.tolist() == [1.0, 2.0, 3.0, 4.0]


def test_an_unreachable_target_names_the_minimum(
    residual: nn.Module, example: Tensor, generator: torch.Generator
) -> None:
    groups = find_groups(residual, example, generator)
    cost = flops(residual, groups, example)
    minimum = reachable_minimum(groups, cost, 4)
    check_budgets(groups, [Budget.of_dense(cost, minimum)], 4)
    with pytest.raises(BudgetError) as caught:
        select_widths(torch.zeros(groups.total), groups, [Budget.of_dense(cost, 0.01)], 4)
    said = re.fullmatch(
        r"target 0\.01 \([\d,]+ FLOPs\) cannot be reached: with widths aligned to 4 "
        r"the network keeps from (0\.\d{4}) \([\d,]+\) to 1 of its FLOPs; raise the target or lower align",
        str(caught.value),
    )
    assert said
    assert minimum <= float(said[1]) < minimum + 1e-4
    check_budgets(groups, [Budget.of_dense(cost, float(said[1]))], 4)


def test_a_limit_above_the_dense_cost_is_no_silent_no_op(
    residual: nn.Module, example: Tensor, generator: torch.Generator
) -> None:
    groups = find_groups(residual, example, generator)
    cost = flops(residual, groups, example)
    check_budgets(groups, [Budget(cost, cost.dense)], 4)
    with pytest.raises(
        BudgetError, match=r"^target 3,000,000,000 FLOPs is more than the dense network has: give less "
    ):
        check_budgets(groups, [Budget(cost, 3e9)], 4)
