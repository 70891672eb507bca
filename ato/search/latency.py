"""Latency as a function of the widths, fitted to networks of random widths that were timed on the device.

A device works on whole blocks of channels, so that a layer's time is a staircase: with `out` and `in` moved up to
whole blocks it is c0 + c1 out + c2 in + c3 out in milliseconds, all c >= 0, with other c where it reads less than one
block, which runtimes do in another way. The block is the one that fits best. The layers of a network add up to the
whole; what the profiler takes itself for every operation is measured with them, and taken off.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import nnls
from torch import Tensor, nn

from atopipe.ato import layers
from atopipe.ato.groups import Groups
from atopipe.ato.search.cost import ChannelCounts, Count
from atopipe.ato.search.selection import width_step

LEAST_FITTED = 8
BLOCKS = (4, 8, 16, 32)  # channels that a device may work on at once
PLAUSIBLE = (0.8, 1.25)  # of the whole time over the sum of its layers
EPSILON = 1e-9
Floats = NDArray[np.float64]


class LatencyTableError(ValueError):
    """Times that cannot be fitted, or are of another network."""


@dataclass(frozen=True)
class TimedNetwork:
    """One network as it was timed: its widths [sets], milliseconds of the whole and of each layer.

    `operations`: how many a layer consists of, those that only bring its input into shape included.
    """

    widths: tuple[int, ...]
    ms: float
    layers: Mapping[str, float]
    operations: Mapping[str, int]


@dataclass(frozen=True)
class HeldOutError:
    """How far the fit is from networks that it has not seen, as fractions of their time."""

    mean: float
    largest: float
    networks: int


@dataclass(frozen=True, eq=False)
class LatencyCost:
    """cost(widths) = sum_t coefficient_t * seen[left_t] * seen[right_t], in milliseconds.

    `seen`: the channel counts at the widths [sets] as a device with blocks of `block` channels sees them. Float64;
    non-decreasing in every width but where a layer comes to read a whole block: see `efficient_steps`. The gradient
    passes steps unchanged, and is never negative.
    """

    counts: ChannelCounts
    block: int
    coefficient: Tensor
    left: Tensor
    right: Tensor
    sizes: Tensor
    name: str = "latency"
    unit: str = "ms"

    def __call__(self, widths: Tensor) -> Tensor:
        """Milliseconds at the widths [sets], a float64 scalar."""
        seen = _seen(self.counts(widths), self.block)
        return (self.coefficient * seen[self.left] * seen[self.right]).sum()

    @cached_property
    def dense(self) -> float:
        """Milliseconds of the whole network."""
        return float(self(self.sizes))

    def to(self, device: torch.device) -> Self:
        """The same cost on another device."""
        counts = ChannelCounts(self.counts.base.to(device), self.counts.share.to(device))
        coefficient, left, right, sizes = (t.to(device) for t in (self.coefficient, self.left, self.right, self.sizes))
        return type(self)(counts, self.block, coefficient, left, right, sizes)


@dataclass(frozen=True, eq=False)
class FittedLatency:
    """The cost, its error, and the width step [sets] in groups at which the device is efficient."""

    cost: LatencyCost
    error: HeldOutError
    steps: tuple[int, ...]


def fit_latency(
    model: nn.Module, groups: Groups, fitted: Sequence[TimedNetwork], held_out: Sequence[TimedNetwork]
) -> FittedLatency:
    """The cost of the networks `fitted`, and its error on those `held_out`.

    Raises LatencyTableError where the networks are too few, or not of these widths and layers.
    """
    _check(model, groups, fitted, held_out)
    times = _layer_times(fitted)
    costs = [_fit(model, groups, block, fitted, times) for block in BLOCKS]
    cost = min(costs, key=lambda cost: _errors(cost, fitted).mean())
    errors = _errors(cost, held_out)
    error = HeldOutError(float(errors.mean()), float(errors.max()), len(errors))
    return FittedLatency(cost, error, efficient_steps(groups, cost))


def efficient_steps(groups: Groups, cost: LatencyCost) -> tuple[int, ...]:
    """The width step of each set in groups: whole blocks, where those make two steps at least.

    A set that has no room for two blocks moves in halves of one where each costs more than the one before, the others
    at full width; else it stays whole: a narrower network would not be faster.
    """
    steps = []
    for position, item in enumerate(groups.sets):
        step = width_step(item.size, item.channels_per_group, cost.block)
        tried = cost.sizes.repeat(item.size // step, 1)
        tried[:, position] = torch.arange(step, item.size + 1, step)
        rises = all(wider > narrower for narrower, wider in pairwise(float(cost(widths)) for widths in tried))
        steps.append(step if rises else item.size)
    return tuple(steps)


def _check(model: nn.Module, groups: Groups, fitted: Sequence[TimedNetwork], held_out: Sequence[TimedNetwork]) -> None:
    if len(fitted) < LEAST_FITTED or not held_out:
        raise LatencyTableError(f"{len(fitted)} timed networks are too few: time {LEAST_FITTED} or more, and others")
    known, names, sizes = dict(model.named_modules()), fitted[0].layers.keys(), groups.sizes
    for network in (*fitted, *held_out):
        if not sum(network.layers.values()) > 0:
            raise LatencyTableError("the table has layers that take no time: time the networks again")
        fits = len(network.widths) == len(sizes) and all(0 < w <= s for w, s in zip(network.widths, sizes, strict=True))
        same = network.layers.keys() == names and network.operations.keys() == names and names <= known.keys()
        if not fits or not same:
            raise LatencyTableError("the times are of another network: make the table from this one")
        if not all(math.isfinite(value) and value >= 0 for value in (network.ms, *network.layers.values())):
            raise LatencyTableError("the table has times that are no numbers: time the networks again")


def _layer_times(timed: Sequence[TimedNetwork]) -> dict[str, Floats]:
    """Of each layer over the networks, without what profiling added: whole = scale * layers - overhead * operations."""
    whole = np.array([network.ms for network in timed])
    layered = np.array([sum(network.layers.values()) for network in timed])
    operations = np.array([sum(network.operations.values()) for network in timed])
    sides = np.stack([layered, -operations], 1) / whole[:, None]
    scale, overhead = np.linalg.lstsq(sides, np.ones(len(timed)), rcond=None)[0]
    if not PLAUSIBLE[0] < scale < PLAUSIBLE[1] or overhead < 0:
        scale, overhead = np.median(whole / layered), 0.0
    least = 1e-3 * whole.min() / len(timed[0].layers)
    return {
        name: np.array([max(scale * n.layers[name] - overhead * n.operations[name], least) for n in timed])
        for name in timed[0].layers
    }


def _fit(
    model: nn.Module, groups: Groups, block: int, timed: Sequence[TimedNetwork], times: Mapping[str, Floats]
) -> LatencyCost:
    """The cost with blocks of so many channels."""
    names = sorted(times)
    named: list[Count] = [count for name in names for count in ((name, "out"), (name, "in"))]
    counts = ChannelCounts.of(model, groups, named)
    widths = torch.tensor([network.widths for network in timed], dtype=torch.float64)
    seen = _seen(counts(widths), block).numpy()
    terms: list[tuple[float, int, int]] = []
    for position, name in enumerate(names):
        pairs = _pairs(2 * position, len(named), is_depthwise=layers.is_depthwise(model.get_submodule(name)))
        found = _non_negative(np.stack([seen[:, a] * seen[:, b] for a, b in pairs], 1), times[name])
        terms += [(float(c), *pair) for c, pair in zip(found, pairs, strict=True) if c > 0]
    coefficient = torch.tensor([term[0] for term in terms], dtype=torch.float64)
    left, right = torch.tensor([term[1] for term in terms]), torch.tensor([term[2] for term in terms])
    sizes = torch.tensor(groups.sizes, dtype=torch.float64)
    layered = LatencyCost(counts, block, coefficient, left, right, sizes)
    predicted = np.array([float(layered(row)) for row in widths])
    scale = float(_non_negative(predicted[:, None], np.array([network.ms for network in timed]))[0])
    return LatencyCost(counts, block, scale * coefficient, left, right, sizes)


def _seen(kept: Tensor, block: int) -> Tensor:
    """[..., 1 + 4 counts]: one; then of all channel counts `kept` [..., counts] the four views that `_pairs` names."""
    whole = kept + ((kept / block - EPSILON).ceil() * block - kept).detach()
    is_narrow = (kept < block - EPSILON).to(kept)
    one = torch.ones_like(kept[..., :1])
    return torch.cat([one, whole, whole * (1 - is_narrow), kept * is_narrow, is_narrow], -1)


def _pairs(out: int, counts: int, *, is_depthwise: bool) -> list[tuple[int, int]]:
    """The terms of a layer, as positions in what `_seen` gives: outputs are count `out`, inputs the next one."""
    whole = 1 + out
    if is_depthwise:
        return [(0, 0), (whole, 0)]
    wide, narrow, is_narrow = (1 + out + 1 + view * counts for view in (1, 2, 3))
    return [(a, b) for a in (0, whole) for b in (0, wide, narrow, is_narrow)]


def _errors(cost: LatencyCost, timed: Sequence[TimedNetwork]) -> Floats:
    """How far the cost is from each network, as a fraction of its time."""
    rows = torch.tensor([network.widths for network in timed], dtype=torch.float64)
    predicted = np.array([float(cost(row)) for row in rows])
    errors: Floats = np.abs(predicted / np.array([network.ms for network in timed]) - 1)
    return errors


def _non_negative(features: Floats, times: Floats) -> Floats:
    """Coefficients >= 0 of least relative squares: an error of a tenth counts alike in short and in long times."""
    weight = 1 / np.maximum(times, 1e-3 * max(times.max(), 1e-9))
    scale = features.max(0) + 1e-12
    found, _ = nnls(features / scale * weight[:, None], times * weight)
    coefficients: Floats = found / scale
    return coefficients
