"""A budget that holds by measurement: whatever the model of the cost is worth."""

import math

import pytest
import torch
from torch import Tensor, nn

from atopipe.ato.discovery.find import find_groups
from atopipe.ato.search.budget import Budget, BudgetError
from atopipe.ato.search.cost import flops, params
from atopipe.ato.search.settle import AIM, ROUNDS, USED, settle_widths


@pytest.fixture
def problem(residual: nn.Module, generator: torch.Generator):  # type: ignore[no-untyped-def]
    example = torch.zeros(1, 3, 16, 16)
    groups = find_groups(residual, example, generator)
    return groups, flops(residual, groups, example), torch.rand(groups.total, generator=generator), residual, example


@pytest.mark.parametrize("bias", [0.7, 0.95, 1.0, 1.1, 1.4])
def test_the_measured_cost_is_within_the_limit_and_uses_it(problem, bias: float) -> None:  # type: ignore[no-untyped-def]
    groups, cost, scores, *_ = problem
    budget = Budget.of_dense(cost, 0.4)
    widths, rounds = settle_widths(scores, groups, [budget], 1, budget, lambda w: bias * float(cost(w)))
    measured = bias * float(cost(widths))
    assert measured <= budget.limit
    assert measured >= USED * budget.limit or len(rounds) == ROUNDS
    assert rounds[0].allowed == pytest.approx(AIM * budget.limit)
    assert bias != 1 or len(rounds) == 1  # a model that is right is measured once
    assert all(r.measured == pytest.approx(bias * r.predicted) for r in rounds)


def test_other_budgets_hold_as_well(problem) -> None:  # type: ignore[no-untyped-def]
    groups, cost, scores, model, example = problem
    tight = Budget.of_dense(params(model, groups, example), 0.2)
    budget = Budget.of_dense(cost, 0.9)
    widths, rounds = settle_widths(scores, groups, [tight, budget], 1, budget, lambda w: float(cost(w)))
    assert tight.holds(widths)
    assert len(rounds) <= ROUNDS


def test_noise_that_only_rises_ends_in_a_refusal(problem) -> None:  # type: ignore[no-untyped-def]
    groups, cost, scores, *_ = problem
    budget = Budget.of_dense(cost, 0.3)
    with pytest.raises(BudgetError, match="cannot be reached here: the narrowest network"):
        settle_widths(scores, groups, [budget], 1, budget, lambda w: math.inf)


def test_nothing_is_measured_twice_without_need(problem) -> None:  # type: ignore[no-untyped-def]
    groups, cost, scores, *_ = problem
    budget, seen = Budget.of_dense(cost, 0.5), []

    def measure(widths: Tensor) -> float:
        seen.append(widths)
        return float(cost(widths))

    _, rounds = settle_widths(scores, groups, [budget], 1, budget, measure)
    assert len(seen) == len(rounds)
