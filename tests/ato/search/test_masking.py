"""The mask while the network runs."""

import pytest
import torch
from torch import Tensor, nn

from atopipe.ato.discovery.find import find_groups
from atopipe.ato.removal.slices import group_norms, scale_groups
from atopipe.ato.search.masking import masked


def test_a_mask_of_ones_leaves_outputs_bit_equal(
    network: nn.Module, example: Tensor, generator: torch.Generator
) -> None:
    groups = find_groups(network, example, generator)
    images = torch.randn(4, 3, 8, 8)
    wanted = network(images)
    with masked(network, groups, torch.ones(groups.total)):
        assert torch.equal(network(images), wanted)


def test_each_image_may_have_a_mask_of_its_own(network: nn.Module, example: Tensor, generator: torch.Generator) -> None:
    groups = find_groups(network, example, generator)
    network = network.double().eval()
    images, masks = torch.randn(3, 3, 8, 8, dtype=torch.float64), torch.rand(3, groups.total, dtype=torch.float64)
    with masked(network, groups, masks):
        together = network(images)
    for image, mask, wanted in zip(images, masks, together, strict=True):
        with masked(network, groups, mask):
            torch.testing.assert_close(network(image[None])[0], wanted)


def test_hooks_are_gone_afterwards_even_after_an_error(
    residual: nn.Module, example: Tensor, generator: torch.Generator
) -> None:
    groups = find_groups(residual, example, generator)
    with pytest.raises(RuntimeError), masked(residual, groups, torch.zeros(groups.total)):
        residual(torch.randn(1, 4, 8, 8))
    assert not any(module._forward_hooks for module in residual.modules())


def test_the_gradient_in_the_mask_agrees_with_finite_differences(
    network: nn.Module, example: Tensor, generator: torch.Generator
) -> None:
    groups = find_groups(network, example, generator)
    network = network.double()
    images, weights = torch.randn(2, 3, 8, 8, dtype=torch.float64), torch.randn(2, 5, dtype=torch.float64)

    def score(mask: Tensor) -> Tensor:
        with masked(network, groups, mask):
            return (network(images) * weights).sum()

    # PReLU and ReLU kinks lie at zero, far from a mask around 0.7.
    mask = (0.6 + 0.2 * torch.rand(groups.total, dtype=torch.float64)).requires_grad_()
    (gradient,) = torch.autograd.grad(score(mask), mask)
    with torch.no_grad():
        for i in torch.randperm(groups.total)[:8]:
            step = torch.zeros(groups.total, dtype=torch.float64).index_fill(0, i, 1e-6)
            slope = (score(mask + step) - score(mask - step)) / 2e-6
            assert gradient[i].item() == pytest.approx(slope.item(), rel=1e-4, abs=1e-7)


def test_group_norms_count_every_slice_once(network: nn.Module, example: Tensor, generator: torch.Generator) -> None:
    groups = find_groups(network, example, generator)
    network = network.double()
    squares = group_norms(network, groups).square().sum()
    held = [p for name, p in network.named_parameters() if name.partition(".")[0] not in ("head", "slope")]
    assert squares.item() == pytest.approx(sum(p.square().sum().item() for p in held))


def test_scaling_a_group_scales_its_norm_and_no_other(
    network: nn.Module, example: Tensor, generator: torch.Generator
) -> None:
    groups = find_groups(network, example, generator)
    factors = torch.rand(groups.total, generator=generator)
    before = group_norms(network, groups)
    scale_groups(network, groups, factors)
    torch.testing.assert_close(group_norms(network, groups), before * factors)
