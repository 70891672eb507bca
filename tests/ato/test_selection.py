"""From scores to the frozen mask."""

import pytest
import torch
from torch import Tensor, nn

from atopipe.ato.groups import Groups
from atopipe.ato.probe import find_groups
from atopipe.ato.resources import Cost, flops
from atopipe.ato.selection import BudgetError, check_budget, reachable_minimum, select_mask, step_sizes


@pytest.fixture(scope="module")
def resnet() -> tuple[Groups, Cost]:
    torchvision = pytest.importorskip("torchvision")
    model = torchvision.models.resnet18(num_classes=10)
    example = torch.zeros(1, 3, 32, 32)
    groups = find_groups(model, example, torch.Generator().manual_seed(0))
    return groups, flops(model, groups, example)


@pytest.mark.parametrize("target", [0.15, 0.3, 0.5, 0.7, 1.0])
@pytest.mark.parametrize("align", [1, 4, 8, 16])
def test_the_budget_is_met_and_used(
    resnet: tuple[Groups, Cost], target: float, align: int, generator: torch.Generator
) -> None:
    groups, cost = resnet
    mask = select_mask(torch.randn(groups.total, generator=generator), groups, cost, target, align)
    ratio = float(cost.ratio(groups.widths(mask)))
    assert target - 0.005 <= ratio <= target
    assert all(int(width) % align == 0 for width in groups.widths(mask))


def test_the_best_groups_of_each_set_are_kept(resnet: tuple[Groups, Cost], generator: torch.Generator) -> None:
    groups, cost = resnet
    scores = torch.randn(groups.total, generator=generator)
    mask = select_mask(scores, groups, cost, 0.4, 8)
    for part, kept in zip(groups.split(scores), groups.split(mask > 0.5), strict=True):
        assert kept.any()
        assert kept.all() or part[kept].min() >= part[~kept].max()


def test_a_better_set_gets_more_width(resnet: tuple[Groups, Cost], generator: torch.Generator) -> None:
    groups, cost = resnet
    scores = torch.randn(groups.total, generator=generator)
    favoured = scores + torch.cat([torch.full((n,), 10.0 * (i == 3)) for i, n in enumerate(groups.sizes)])
    assert groups.widths(select_mask(favoured, groups, cost, 0.4, 8))[3] == groups.sizes[3]
    assert groups.widths(select_mask(scores, groups, cost, 0.4, 8))[3] < groups.sizes[3]


def test_equal_scores_give_one_and_the_same_mask(resnet: tuple[Groups, Cost]) -> None:
    groups, cost = resnet
    scores = torch.zeros(groups.total)
    assert torch.equal(select_mask(scores, groups, cost, 0.3, 8), select_mask(scores, groups, cost, 0.3, 8))


def test_narrow_sets_take_smaller_steps() -> None:
    assert step_sizes([64, 16, 8, 12, 6, 3, 1], align=8) == [8, 8, 4, 4, 2, 1, 1]


def test_an_unreachable_target_names_the_minimum(
    residual: nn.Module, example: Tensor, generator: torch.Generator
) -> None:
    groups = find_groups(residual, example, generator)
    cost = flops(residual, groups, example)
    minimum = reachable_minimum(groups, cost, 4)
    check_budget(groups, cost, minimum, 4)
    with pytest.raises(BudgetError) as caught:
        select_mask(torch.zeros(groups.total), groups, cost, 0.01, 4)
    assert str(caught.value) == (
        "target 0.01 cannot be reached: with widths in steps of up to 4 channels the network keeps at "
        f"least {minimum:.3f} of its FLOPs; raise the target or lower align"
    )
