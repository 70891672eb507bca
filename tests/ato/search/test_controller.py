"""The controller network and its samples."""

import pytest
import torch

from atopipe.ato.search.controller import Controller, gumbel_noise, keep_probability, relaxed_mask, straight_through


def test_one_logit_per_group_and_frozen_orthonormal_inputs(generator: torch.Generator) -> None:
    controller = Controller([5, 3, 7], generator)
    assert controller().shape == (15,)
    inputs = controller.inputs[:, 0]
    torch.testing.assert_close(inputs @ inputs.T, torch.eye(3))
    assert "inputs" not in dict(controller.named_parameters())


def test_it_is_a_function_of_its_generator_alone(generator: torch.Generator) -> None:
    torch.manual_seed(1)
    one = Controller([5, 3], torch.Generator().manual_seed(3))()
    torch.manual_seed(2)
    assert torch.equal(one, Controller([5, 3], torch.Generator().manual_seed(3))())
    assert not torch.equal(one, Controller([5, 3], torch.Generator().manual_seed(4))())


def test_every_width_depends_on_all_sets(generator: torch.Generator) -> None:
    controller = Controller([2, 2, 2], generator)
    for moved in range(3):
        before = controller()
        controller.inputs[moved] += 1.0
        assert (controller() != before).view(3, 2).any(1).all()


def test_straight_through_is_hard_forward_and_relaxed_backward() -> None:
    relaxed = torch.tensor([0.1, 0.499, 0.5, 0.9], requires_grad=True)
    hard = straight_through(relaxed)
    assert hard.tolist() == [0.0, 0.0, 1.0, 1.0]
    hard.backward(torch.arange(4.0))
    assert relaxed.grad is not None
    assert relaxed.grad.tolist() == [0.0, 1.0, 2.0, 3.0]


@pytest.mark.parametrize("score", [-5.0, -3.367, -2.5, 0.0])
def test_keep_probability_is_the_share_of_hard_samples(score: float, generator: torch.Generator) -> None:
    scores = torch.full((200_000,), score)
    samples = straight_through(relaxed_mask(scores, gumbel_noise(scores, generator), offset=3.0, temperature=0.4))
    assert samples.mean().item() == pytest.approx(keep_probability(scores[:1], 3.0).item(), abs=0.004)


def test_at_the_start_everything_is_kept(generator: torch.Generator) -> None:
    assert keep_probability(Controller([64] * 10, generator)(), offset=3.0).min() > 0.99


def test_noise_is_standard_gumbel(generator: torch.Generator) -> None:
    noise = gumbel_noise(torch.empty(400_000, dtype=torch.float64), generator)
    assert noise.mean().item() == pytest.approx(0.5772, abs=0.01)
    assert noise.var().item() == pytest.approx(torch.pi**2 / 6, abs=0.03)
    assert torch.isfinite(noise).all()
