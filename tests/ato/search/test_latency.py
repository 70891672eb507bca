"""The fit of latency to timed networks: exact where a device is as the model says, honest about its error elsewhere."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from atopipe.ato.discovery.find import find_groups
from atopipe.ato.groups import Groups
from atopipe.ato.search.cost import ChannelCounts
from atopipe.ato.search.latency import FittedLatency, LatencyTableError, TimedNetwork, fit_latency

NETWORKS, HELD_OUT = 100, 12
OVERHEAD = 0.002  # milliseconds that profiling adds to every operation


def layers_of(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)]


def timed_networks(
    model: nn.Module,
    groups: Groups,
    generator: torch.Generator,
    *,
    block: int = 4,
    slow_below: float = 1.0,
    disturbed: Callable[[float], float] = lambda ms: ms,
) -> list[TimedNetwork]:
    """On a device that works on whole blocks: 0.1 + (in + 2 out + in out) / 1000 ms for a layer in blocks of channels.

    Where a layer reads less than one block, `slow_below` times as much.
    """
    counts = ChannelCounts.of(model, groups, [(name, axis) for name in layers_of(model) for axis in ("in", "out")])
    found = []
    for number in range(NETWORKS):
        widths = [int(torch.randint(1, size + 1, (), generator=generator)) if number else size for size in groups.sizes]
        exact = counts(torch.tensor(widths, dtype=torch.float64)).view(-1, 2)
        kept = (exact / block).ceil() * block
        times = 0.1 + (kept[:, 0] + 2 * kept[:, 1] + kept.prod(1)) / 1000
        times = torch.where(exact[:, 0] < block, slow_below * times, times)
        by_layer = dict(zip(layers_of(model), (times + OVERHEAD).tolist(), strict=True))
        found.append(
            TimedNetwork(tuple(widths), disturbed(float(times.sum())), by_layer, dict.fromkeys(layers_of(model), 1))
        )
    return found


def fitted(model: nn.Module, groups: Groups, timed: list[TimedNetwork]) -> FittedLatency:
    return fit_latency(model, groups, timed[:-HELD_OUT], timed[-HELD_OUT:])


@pytest.mark.parametrize("block", [4, 8])
def test_a_device_with_blocks_is_fitted(block: int, residual: nn.Module, generator: torch.Generator) -> None:
    groups = find_groups(residual, torch.zeros(1, 3, 16, 16), generator)
    timed = timed_networks(residual, groups, generator, block=block)
    found = fitted(residual, groups, timed)
    assert (found.error.networks, found.cost.unit, found.cost.block) == (HELD_OUT, "ms", block)
    assert found.error.mean < 0.005
    predicted = [float(found.cost(torch.tensor(network.widths, dtype=torch.float64))) for network in timed]
    assert predicted == pytest.approx([network.ms for network in timed], rel=0.03)


def test_latency_passes_gradients_that_are_never_negative(
    network: nn.Module, example: Tensor, generator: torch.Generator
) -> None:
    groups = find_groups(network, example, generator)
    noise = lambda ms: ms * (1 + 0.1 * float(torch.randn((), generator=generator)))  # noqa: E731
    cost = fitted(network, groups, timed_networks(network, groups, generator, disturbed=noise)).cost
    widths = torch.tensor(groups.sizes, dtype=torch.float64).div(2).requires_grad_()
    (slope,) = torch.autograd.grad(cost(widths), widths)
    assert slope.dtype == torch.float64
    assert bool((slope >= 0).all())
    assert float(slope.sum()) > 0


def test_latency_rises_with_every_step_of_the_widths(residual: nn.Module, generator: torch.Generator) -> None:
    groups = find_groups(residual, torch.zeros(1, 3, 16, 16), generator)
    found = fitted(residual, groups, timed_networks(residual, groups, generator))
    for position, (size, step) in enumerate(zip(groups.sizes, found.steps, strict=True)):
        others = torch.tensor(groups.sizes, dtype=torch.float64)
        costs = []
        for width in range(step, size + 1, step):
            others[position] = width
            costs.append(float(found.cost(others)))
        assert costs == sorted(set(costs))


def test_a_width_that_is_no_faster_when_narrower_stays_whole(residual: nn.Module, generator: torch.Generator) -> None:
    groups = find_groups(residual, torch.zeros(1, 3, 16, 16), generator)
    block = max(groups.sizes)
    slow = fitted(residual, groups, timed_networks(residual, groups, generator, block=block, slow_below=3.0))
    assert slow.cost.block == block
    assert slow.steps == tuple(groups.sizes)


def test_the_error_is_that_of_networks_the_fit_has_not_seen(residual: nn.Module, generator: torch.Generator) -> None:
    groups = find_groups(residual, torch.zeros(1, 3, 16, 16), generator)
    timed = timed_networks(residual, groups, generator)
    slower = [replace(n, ms=2 * n.ms) for n in timed[-HELD_OUT:]]
    assert fitted(residual, groups, [*timed[:-HELD_OUT], *slower]).error.mean == pytest.approx(0.5, abs=1e-3)


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (lambda timed: timed[: HELD_OUT + 7], "7 timed networks are too few: time 8 or more, and others"),
        (lambda timed: [replace(n, widths=(1,)) for n in timed], "are of another network"),
        (lambda timed: [replace(n, layers={"other": 1.0}) for n in timed], "are of another network"),
        (lambda timed: [replace(n, operations={}) for n in timed], "are of another network"),
        (lambda timed: [replace(n, layers=dict.fromkeys(n.layers, 0.0)) for n in timed], "take no time"),
        (lambda timed: [replace(n, ms=float("nan")) for n in timed], "are no numbers"),
    ],
    ids=["too few", "other widths", "other layers", "no operations", "no time", "no numbers"],
)
def test_times_that_cannot_be_fitted_are_refused(
    harm: Callable[[list[TimedNetwork]], list[TimedNetwork]],
    words: str,
    residual: nn.Module,
    generator: torch.Generator,
) -> None:
    groups = find_groups(residual, torch.zeros(1, 3, 16, 16), generator)
    with pytest.raises(LatencyTableError, match=words):
        fitted(residual, groups, harm(timed_networks(residual, groups, generator)))
