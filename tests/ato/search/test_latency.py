"""The fit of latency to timed networks: exact where a device is as the model says, honest about its error elsewhere."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from atopipe.ato.discovery.find import find_groups
from atopipe.ato.groups import Groups
from atopipe.ato.search.cost import ChannelCounts
from atopipe.ato.search.latency import HELD_OUT, LatencyTableError, TimedNetwork, fit_latency

NETWORKS = 30


def layers_of(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)]


def timed_networks(
    model: nn.Module, groups: Groups, generator: torch.Generator, disturbed: Callable[[float], float] = lambda ms: ms
) -> list[TimedNetwork]:
    """On a device that takes 0.1 + (in + 2 out + in out) / 1000 ms for a layer, and 1.5 times their sum in all."""
    counts = ChannelCounts.of(model, groups, [(name, axis) for name in layers_of(model) for axis in ("in", "out")])
    found = []
    for _ in range(NETWORKS):
        widths = [int(torch.randint(1, size + 1, (), generator=generator)) for size in groups.sizes]
        kept = counts(torch.tensor(widths, dtype=torch.float64)).view(-1, 2)
        times = 0.1 + (kept[:, 0] + 2 * kept[:, 1] + kept.prod(1)) / 1000
        by_layer = dict(zip(layers_of(model), times.tolist(), strict=True))
        found.append(TimedNetwork(tuple(widths), disturbed(1.5 * sum(by_layer.values())), by_layer, 0.0))
    return found


def test_a_bilinear_device_is_fitted_exactly(residual: nn.Module, generator: torch.Generator) -> None:
    groups = find_groups(residual, torch.zeros(1, 3, 16, 16), generator)
    timed = timed_networks(residual, groups, generator)
    cost, error = fit_latency(residual, groups, timed)
    assert (error.networks, cost.unit) == (HELD_OUT, "ms")
    assert error.largest < 1e-6
    for network in timed:
        assert float(cost(torch.tensor(network.widths, dtype=torch.float64))) == pytest.approx(network.ms, rel=1e-6)


def test_latency_is_differentiable_and_rises_with_every_width(
    network: nn.Module, example: Tensor, generator: torch.Generator
) -> None:
    groups = find_groups(network, example, generator)
    noise = lambda ms: ms * (1 + 0.1 * float(torch.randn((), generator=generator)))  # noqa: E731
    cost, _ = fit_latency(network, groups, timed_networks(network, groups, generator, noise))
    widths = torch.tensor(groups.sizes, dtype=torch.float64).div(2).requires_grad_()
    assert torch.autograd.gradcheck(cost, widths)
    (slope,) = torch.autograd.grad(cost(widths), widths)
    assert bool((slope >= 0).all())
    assert float(slope.sum()) > 0


def test_the_error_is_that_of_networks_the_fit_has_not_seen(residual: nn.Module, generator: torch.Generator) -> None:
    groups = find_groups(residual, torch.zeros(1, 3, 16, 16), generator)
    timed = timed_networks(residual, groups, generator)
    slower = [TimedNetwork(n.widths, 2 * n.ms, n.layers, n.rest) for n in timed[-HELD_OUT:]]
    _, error = fit_latency(residual, groups, [*timed[:-HELD_OUT], *slower])
    assert error.mean == pytest.approx(0.5, abs=1e-6)


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (lambda timed: timed[:10], "10 timed networks are too few: time 20 or more"),
        (lambda timed: [TimedNetwork((1,), n.ms, n.layers, n.rest) for n in timed], "are of another network"),
        (lambda timed: [TimedNetwork(n.widths, n.ms, {"other": 1.0}, 0.0) for n in timed], "are of another network"),
        (
            lambda timed: [TimedNetwork(n.widths, n.ms, dict.fromkeys(n.layers, 0.0), 1.0) for n in timed],
            "take no time",
        ),
        (lambda timed: [TimedNetwork(n.widths, float("nan"), n.layers, 0.0) for n in timed], "are no numbers"),
    ],
    ids=["too few", "other widths", "other layers", "no time", "no numbers"],
)
def test_times_that_cannot_be_fitted_are_refused(
    harm: Callable[[list[TimedNetwork]], list[TimedNetwork]],
    words: str,
    residual: nn.Module,
    generator: torch.Generator,
) -> None:
    groups = find_groups(residual, torch.zeros(1, 3, 16, 16), generator)
    with pytest.raises(LatencyTableError, match=words):
        fit_latency(residual, groups, harm(timed_networks(residual, groups, generator)))
