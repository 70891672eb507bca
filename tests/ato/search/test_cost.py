"""Costs as functions of the widths, against an independent counter; the penalty against finite differences."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from atopipe.ato.discovery.find import find_groups
from atopipe.ato.groups import Groups
from atopipe.ato.removal.shrink import shrink
from atopipe.ato.search.budget import Budget, budget_penalty, search_penalty
from atopipe.ato.search.cost import flops, kept_fraction, params


def counted_flops(model: nn.Module, example: Tensor) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(example)
    return counter.get_total_flops()


def test_flops_and_params_equal_an_independent_count_on_the_shrunk_network(
    network: nn.Module, example: Tensor, generator: torch.Generator
) -> None:
    groups = find_groups(network, example, generator)
    count_flops, count_params = flops(network, groups, example), params(network, groups, example)
    assert count_flops.dense == counted_flops(network, example)
    assert count_params.dense == sum(p.numel() for p in network.parameters())
    for _ in range(5):
        mask = torch.cat([(torch.rand(n) > 0.5).index_fill(0, torch.tensor(0), True) for n in groups.sizes])
        small, _ = shrink(network, groups, mask)
        assert float(count_flops(groups.widths(mask))) == counted_flops(small, example)
        assert float(count_params(groups.widths(mask))) == sum(p.numel() for p in small.parameters())


def test_flops_rise_with_every_group(network: nn.Module, example: Tensor, generator: torch.Generator) -> None:
    groups = find_groups(network, example, generator)
    cost = flops(network, groups, example)
    widths = torch.ones(len(groups.sets), dtype=torch.float64)
    for i, size in enumerate(groups.sizes):
        wider = widths.clone()
        wider[i] = size
        assert cost(wider) > cost(widths)


def test_flops_are_differentiable_in_the_mask(residual: nn.Module, example: Tensor, generator: torch.Generator) -> None:
    groups = find_groups(residual, example, generator)
    cost = flops(residual, groups, example)
    mask = torch.rand(groups.total, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda m: Budget(cost, 0.3 * cost.dense).ratio(groups.widths(m)), mask)


def test_a_layer_that_runs_twice_is_counted_twice() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.again, self.head = (
                nn.Conv2d(3, 8, 3, padding=1),
                nn.Conv2d(8, 8, 3, padding=1),
                nn.Linear(8, 5),
            )

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.again(self.again(self.first(x)).relu()).relu().mean((2, 3)))

    model, example = Twice(), torch.zeros(1, 3, 8, 8)
    groups = find_groups(model, example, torch.Generator().manual_seed(0))
    assert flops(model, groups, example).dense == counted_flops(model, example)


@pytest.mark.parametrize("call", [lambda layer, x: layer(x), lambda layer, x: layer(input=x)], ids=["place", "name"])
def test_a_transposed_convolution_is_counted_however_it_is_called(call: Callable[[nn.Module, Tensor], Tensor]) -> None:
    class Up(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.up, self.head = nn.Conv2d(3, 8, 3), nn.ConvTranspose2d(8, 6, 2, 2), nn.Linear(6, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(call(self.up, self.first(x).relu()).mean((2, 3)))

    model, example = Up(), torch.zeros(1, 3, 8, 8)
    assert flops(model, Groups((), ()), example).dense == counted_flops(model, example)


@pytest.mark.parametrize("margin", [0.0, 0.005])
@pytest.mark.parametrize("excess", [0.05, 0.93, 1.07, 3.0])
def test_the_penalty_is_the_log_distance_and_its_gradient_is_right(excess: float, margin: float) -> None:
    point = torch.tensor(excess, dtype=torch.float64, requires_grad=True)
    penalty = budget_penalty(point, margin)
    assert penalty.item() == pytest.approx(abs(math.log(excess)))
    assert torch.autograd.gradcheck(lambda r: budget_penalty(r, margin), point)


def test_the_penalty_is_flat_within_the_margin() -> None:
    excess = torch.tensor(1.01, dtype=torch.float64, requires_grad=True)
    penalty = budget_penalty(excess, 0.02)
    (slope,) = torch.autograd.grad(penalty, excess)
    assert slope == 0
    assert penalty.item() == pytest.approx(math.log(1.02))


def test_of_two_budgets_the_one_that_is_exceeded_most_counts_alone(residual: nn.Module, example: Tensor) -> None:
    """Parameters are far under their limit, FLOPs a little over theirs: every width is pushed down, none up."""
    groups = find_groups(residual, example, torch.Generator().manual_seed(0))
    tight, slack = flops(residual, groups, example), params(residual, groups, example)
    widths = torch.tensor(groups.sizes, dtype=torch.float64).requires_grad_()
    both = [Budget(slack, 10 * slack.dense), Budget(tight, tight.dense / 1.1)]
    penalty = search_penalty(both, widths, 1.0, anneal=0.8, margin=0.0)
    (slope,) = torch.autograd.grad(penalty, widths)
    assert penalty.item() == pytest.approx(math.log(1.1))
    assert (slope > 0).all()


def test_limits_fall_from_the_dense_cost_and_the_penalty_is_zero_on_the_way(
    residual: nn.Module, example: Tensor
) -> None:
    groups = find_groups(residual, example, torch.Generator().manual_seed(0))
    cost, whole = flops(residual, groups, example), torch.tensor(groups.sizes, dtype=torch.float64)
    budget = Budget.of_dense(cost, 0.25)
    met = [search_penalty([budget], whole, at, anneal=0.8, margin=0.0).item() for at in (0.0, 0.4, 0.8, 1.0)]
    assert met == pytest.approx([0.0, math.log(2), math.log(4), math.log(4)], abs=1e-12)
    assert kept_fraction(cost, whole) == 1.0
