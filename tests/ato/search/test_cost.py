"""Costs as functions of the widths, against an independent counter; the penalty against finite differences."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from atopipe.ato.discovery.find import find_groups
from atopipe.ato.removal.shrink import shrink
from atopipe.ato.search.cost import budget_penalty, flops, params


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
    assert torch.autograd.gradcheck(lambda m: cost.ratio(groups.widths(m)), mask)


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


@pytest.mark.parametrize("margin", [0.0, 0.005])
@pytest.mark.parametrize("ratio", [0.05, 0.28, 0.32, 0.9])
def test_the_penalty_is_the_log_distance_and_its_gradient_is_right(ratio: float, margin: float) -> None:
    point = torch.tensor(ratio, dtype=torch.float64, requires_grad=True)
    penalty = budget_penalty(point, 0.3, margin)
    assert penalty.item() == pytest.approx(abs(math.log(ratio / 0.3)))
    assert torch.autograd.gradcheck(lambda r: budget_penalty(r, 0.3, margin), point)


def test_the_penalty_is_flat_within_the_margin() -> None:
    ratio = torch.tensor(0.303, dtype=torch.float64, requires_grad=True)
    penalty = budget_penalty(ratio, 0.3, 0.005)
    (slope,) = torch.autograd.grad(penalty, ratio)
    assert slope == 0
    assert penalty.item() == pytest.approx(math.log(0.305 / 0.3))
