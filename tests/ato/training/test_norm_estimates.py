"""Statistics of normalisation layers, estimated again: right, reversible, and without any trace in the training."""

import copy
import dataclasses
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from atopipe.ato.discovery.find import find_groups
from atopipe.ato.recipe import PhaseSettings, Recipe, WeightSettings
from atopipe.ato.search.budget import Budget
from atopipe.ato.search.cost import flops
from atopipe.ato.training.norm_estimates import Calibration, estimate_statistics, estimated_statistics, lag_of
from atopipe.ato.training.trainer import Trainer

BATCHES = [
    (5 + 2 * torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(i)), torch.arange(8) % 5) for i in range(8)
]
RECIPE = Recipe(align=2, phases=PhaseSettings(search=0.25, decay=0.25))


def states(model: nn.Module) -> dict[str, Tensor]:
    return copy.deepcopy(model.state_dict())


def test_they_are_the_means_over_the_batches(generator: torch.Generator) -> None:
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Dropout(0.9), nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Flatten())
    estimate_statistics(model.train(), (images for images, _ in BATCHES))
    means = torch.stack([images.mean((0, 2, 3)) for images, _ in BATCHES]).mean(0)
    variances = torch.stack([images.transpose(0, 1).flatten(1).var(1) for images, _ in BATCHES]).mean(0)
    torch.testing.assert_close(model[0].running_mean, means)
    torch.testing.assert_close(model[0].running_var, variances)
    with torch.no_grad():
        inner = torch.stack(
            [model[2].eval()(model[0].train(True)(images)).mean((0, 2, 3)) for images, _ in BATCHES]
        ).mean(0)
    torch.testing.assert_close(model[3].running_mean, inner, rtol=1e-4, atol=1e-5)


def test_modes_momenta_parameters_and_generators_stay(residual: nn.Module) -> None:
    residual.train()
    residual.stem.eval()
    residual.inner[0][1].momentum = None
    before, state = states(residual), torch.get_rng_state()
    modes = [(module.training, getattr(module, "momentum", 0)) for module in residual.modules()]
    estimate_statistics(residual, [BATCHES[0][0]])
    assert [(module.training, getattr(module, "momentum", 0)) for module in residual.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[name], parameter) for name, parameter in residual.named_parameters())
    assert not torch.equal(before["stem.1.running_mean"], residual.stem[1].running_mean)


def test_a_look_leaves_every_bit_as_it_was(residual: nn.Module) -> None:
    before = states(residual)
    with estimated_statistics(residual, [BATCHES[0][0]]):
        assert not torch.equal(before["stem.1.running_var"], residual.stem[1].running_var)
    assert all(torch.equal(before[name], tensor) for name, tensor in residual.state_dict().items())


def test_a_network_without_such_layers_is_not_even_run() -> None:
    def none() -> Iterator[Tensor]:
        raise AssertionError
        yield

    estimate_statistics(nn.Sequential(nn.LayerNorm(3), nn.BatchNorm2d(3, track_running_stats=False)), none())


def run(model: nn.Module, calibration: Calibration | None, recipe: Recipe = RECIPE) -> tuple[Trainer, list[float]]:
    example = torch.zeros(1, 3, 8, 8)
    groups = find_groups(model, example, torch.Generator().manual_seed(0))
    budget = Budget.of_dense(flops(model, groups, example), 0.5)
    noise = torch.Generator().manual_seed(0)
    trainer = Trainer(model, groups, [budget], recipe, 40, noise, calibration=calibration)
    seen = []
    for number in range(40):
        trainer.step(*BATCHES[number % 8])
        with trainer.look():
            seen.append(float(trainer.network.stem[1].running_mean.sum()))  # type: ignore[union-attr, operator, index]
    return trainer, seen


@pytest.mark.parametrize("ema", [0.0, 0.9])
@pytest.mark.parametrize("live_shrink", [True, False])
def test_looks_change_no_weight_and_what_is_delivered_has_the_estimates(
    residual: nn.Module, ema: float, live_shrink: bool
) -> None:
    recipe = dataclasses.replace(RECIPE, live_shrink=live_shrink, weights=WeightSettings(ema=ema))
    plain, _ = run(copy.deepcopy(residual), None, recipe)
    calibrated, _ = run(copy.deepcopy(residual), Calibration(BATCHES), recipe)
    for name, parameter in plain.network.named_parameters():
        assert torch.equal(parameter, dict(calibrated.network.named_parameters())[name])
    again = copy.deepcopy(calibrated.network)
    estimate_statistics(again, (images for images, _ in BATCHES))
    for name, buffer in calibrated.network.named_buffers():
        if not name.endswith("num_batches_tracked"):
            torch.testing.assert_close(dict(again.named_buffers())[name], buffer)
    model, _ = calibrated.trained_model()
    with torch.no_grad():
        images = BATCHES[0][0]
        torch.testing.assert_close(model.eval()(images), calibrated.network.eval()(images), rtol=1e-3, atol=1e-4)


def test_a_look_is_of_estimates_from_the_freeze_until_statistics_have_followed(residual: nn.Module) -> None:
    """40 steps: dense to 4, search to 14, decay to 24; layers with momentum 0.5 follow within 6 steps."""
    for module in residual.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.5
    assert lag_of(residual) == 6
    trainer, looked = run(copy.deepcopy(residual), Calibration(BATCHES))
    _, plain = run(copy.deepcopy(residual), None)
    assert trainer.schedule.search_end == 14
    differ = [step for step, (one, other) in enumerate(zip(looked, plain, strict=True), start=1) if one != other]
    assert differ == [*range(15, 31), 40]
