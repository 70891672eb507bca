"""The group steps: how far a norm moves."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from atopipe.ato.removal.projection import decay_step, half_space_factor, proximal_factor, set_shares

norms = st.lists(st.floats(0, 1e3, width=32), min_size=1, max_size=8).map(
    lambda v: torch.tensor(v, dtype=torch.float64)
)


@given(norms, st.floats(0, 1e3))
def test_the_proximal_step_shrinks_a_norm_by_exactly_the_step(norm: Tensor, step: float) -> None:
    after = norm * proximal_factor(norm, torch.full_like(norm, step))
    torch.testing.assert_close(after, (norm - step).clamp(min=0), rtol=1e-12, atol=1e-12)


def test_the_proximal_step_solves_its_minimisation() -> None:
    """prox(g) = argmin_x 0.5 ||x - g||^2 + step * ||x||, found here by brute force."""
    group, step = torch.randn(4, dtype=torch.float64), 0.3
    answer = group * proximal_factor(group.norm(), torch.tensor(step))

    def objective(x: Tensor) -> Tensor:
        return 0.5 * (x - group).square().sum(-1) + step * x.norm(dim=-1)

    others = answer + 0.05 * torch.randn(20_000, 4, dtype=torch.float64)
    assert (objective(others) >= objective(answer)).all()


def test_repeated_decay_steps_end_at_exactly_zero_whatever_happens_between() -> None:
    group = torch.randn(16)
    for left in range(10, 0, -1):
        group = group + 0.1 * torch.randn(16)
        group = group * proximal_factor(group.norm(), decay_step(group.norm(), left))
    assert (group == 0).all()


def test_the_half_space_step_zeroes_what_turns_away() -> None:
    old = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.0, 2.0]])
    new = torch.tensor([[0.9, 0.3], [0.05, 5.0], [-0.2, 0.1], [0.0, 0.3]])
    factor = half_space_factor(old.norm(dim=1), (old * new).sum(1), epsilon=0.1)
    assert factor.tolist() == [1.0, 0.0, 0.0, 1.0]  # the last: 0.6 >= 0.1 * 4


def test_shares_sum_to_one_and_stand_no_removal() -> None:
    assert set_shares(torch.tensor([3, 0, 1])).tolist() == [0.75, 0.0, 0.25]
    assert set_shares(torch.tensor([0, 0])).tolist() == [0.0, 0.0]
