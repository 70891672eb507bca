"""Searches by name: whatever the scores come from, the mask is within the budgets."""

import dataclasses

import pytest
import torch
from torch import Tensor, nn

from atopipe.ato.discovery.find import find_groups
from atopipe.ato.recipe import Recipe
from atopipe.ato.search.budget import Budget
from atopipe.ato.search.cost import flops, kept_fraction, params
from atopipe.ato.search.mask_search import SearchProblem
from atopipe.ato.search.score_search import norm_scales
from atopipe.ato.search.searches import SEARCHES
from atopipe.ato.snapshot import Snapshot


@pytest.fixture
def problem(network: nn.Module, example: Tensor, generator: torch.Generator) -> SearchProblem:
    groups = find_groups(network, example, generator)
    budgets = [Budget.of_dense(cost(network, groups, example), 0.5) for cost in (flops, params)]
    return SearchProblem(network, groups, budgets, Recipe(align=1), torch.Generator().manual_seed(3))


@pytest.mark.parametrize("name", SEARCHES)
def test_every_search_ends_within_every_budget_and_leaves_the_network_alone(name: str, problem: SearchProblem) -> None:
    before = {key: tensor.clone() for key, tensor in problem.model.state_dict().items()}
    search = SEARCHES[name](problem)
    search.step(torch.randn(4, 3, 8, 8), torch.arange(4) % 5, progress=1.0)
    mask = search.best_mask()
    assert set(mask.tolist()) == {0.0, 1.0}
    assert all(budget.holds(problem.groups.widths(mask)) for budget in problem.budgets)
    assert max(kept_fraction(b.cost, problem.groups.widths(mask)) for b in problem.budgets) > 0.3
    assert search.likely_mask().shape == search.scores().shape == mask.shape
    assert all(torch.equal(before[key], tensor) for key, tensor in problem.model.state_dict().items())


@pytest.mark.parametrize("name", SEARCHES)
def test_a_search_that_is_taken_up_again_ends_in_the_same_mask(name: str, problem: SearchProblem) -> None:
    batch = torch.randn(4, 3, 8, 8), torch.arange(4) % 5
    first = SEARCHES[name](problem)
    first.step(*batch, progress=0.5)
    kept = first.snapshot()
    copied = Snapshot({key: tensor.clone() for key, tensor in kept.tensors.items()}, kept.values)
    second = SEARCHES[name](dataclasses.replace(problem, generator=torch.Generator().manual_seed(3)))
    second.restore(copied)
    second.problem.generator.set_state(problem.generator.get_state())  # type: ignore[attr-defined]
    for search, generator in ((first, problem.generator), (second, second.problem.generator)):  # type: ignore[attr-defined]
        assert generator.initial_seed() == 3
        search.step(*batch, progress=1.0)
    assert torch.equal(first.scores(), second.scores())
    assert torch.equal(first.best_mask(), second.best_mask())


def test_uniform_and_random_keep_the_same_share_of_every_set(residual: nn.Module, example: Tensor) -> None:
    groups = find_groups(residual, example, torch.Generator().manual_seed(0))
    budget = Budget.of_dense(flops(residual, groups, example), 0.4)
    problem = SearchProblem(residual, groups, [budget], Recipe(align=1), torch.Generator().manual_seed(3))
    for name in ("uniform", "random"):
        widths = groups.widths(SEARCHES[name](problem).best_mask())
        shares = [float(width) / size for width, size in zip(widths, groups.sizes, strict=True)]
        assert max(shares) - min(shares) <= 1 / min(groups.sizes) + 1e-9


def test_magnitude_keeps_the_groups_with_the_largest_norm_scales(residual: nn.Module, example: Tensor) -> None:
    for module in residual.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
    groups = find_groups(residual, example, torch.Generator().manual_seed(0))
    budget = Budget.of_dense(flops(residual, groups, example), 0.5)
    mask = SEARCHES["magnitude"](
        SearchProblem(residual, groups, [budget], Recipe(align=1), torch.Generator())
    ).best_mask()
    for scales, kept in zip(groups.split(norm_scales(residual, groups)), groups.split(mask > 0.5), strict=True):
        assert kept.all() or scales[kept].min() >= scales[~kept].max()


def test_random_is_another_choice_for_another_seed(residual: nn.Module, example: Tensor) -> None:
    groups = find_groups(residual, example, torch.Generator().manual_seed(0))
    budget = Budget.of_dense(flops(residual, groups, example), 0.5)
    masks = [
        SEARCHES["random"](
            SearchProblem(residual, groups, [budget], Recipe(align=1), torch.Generator().manual_seed(seed))
        ).best_mask()
        for seed in (1, 1, 2)
    ]
    assert torch.equal(masks[0], masks[1])
    assert not torch.equal(masks[0], masks[2])
