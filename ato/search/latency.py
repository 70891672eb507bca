"""Latency as a function of the widths, fitted to networks of random widths that were timed on the device.

A layer takes c0 + c1 * in + c2 * out + c3 * in * out milliseconds with in and out channels kept, all c >= 0: what a
convolution costs apart from steps at the width of the vector units. The sum over layers is then fitted to the times
of whole networks, which contain what no layer's time does: conversions of layout, calls, everything between layers.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import nnls
from torch import Tensor, nn

from atopipe.ato import layers
from atopipe.ato.groups import Groups
from atopipe.ato.search.cost import BilinearCost, ChannelCounts, Count, Term, assemble

NAME, UNIT = "latency", "ms"
HELD_OUT = 12  # networks that the fit does not see
LEAST_FITTED = 8
Floats = NDArray[np.float64]


class LatencyTableError(ValueError):
    """Times that cannot be fitted, or are of another network."""


@dataclass(frozen=True)
class TimedNetwork:
    """One network as it was timed: its widths [sets], milliseconds of the whole, of each layer, and of the rest."""

    widths: tuple[int, ...]
    ms: float
    layers: Mapping[str, float]
    rest: float


@dataclass(frozen=True)
class HeldOutError:
    """How far the fit is from networks that it has not seen, as fractions of their time."""

    mean: float
    largest: float
    networks: int


def fit_latency(model: nn.Module, groups: Groups, timed: Sequence[TimedNetwork]) -> tuple[BilinearCost, HeldOutError]:
    """The cost in milliseconds, non-decreasing in every width, and its error on the last `HELD_OUT` networks.

    Raises LatencyTableError where the networks are too few, or not of these widths and layers.
    """
    _check(model, groups, timed)
    widths = torch.tensor([network.widths for network in timed], dtype=torch.float64)
    fitted = len(timed) - HELD_OUT
    terms = [
        term
        for name in sorted(timed[0].layers)
        for term in _layer_terms(model, groups, name, widths[:fitted], _times(timed[:fitted], name))
    ]
    layered = assemble(NAME, UNIT, model, groups, terms)
    whole = np.array([network.ms for network in timed])
    predicted = np.array([float(layered(row)) for row in widths])
    scale, constant = _non_negative(np.stack([predicted, np.ones(len(timed))], 1)[:fitted], whole[:fitted])
    scaled: list[Term] = [(scale * coefficient, left, right) for coefficient, left, right in terms]
    errors = np.abs((scale * predicted + constant) / whole - 1)[fitted:]
    cost = assemble(NAME, UNIT, model, groups, [*scaled, (constant, None, None)])
    return cost, HeldOutError(float(errors.mean()), float(errors.max()), len(errors))


def _check(model: nn.Module, groups: Groups, timed: Sequence[TimedNetwork]) -> None:
    if len(timed) < HELD_OUT + LEAST_FITTED:
        raise LatencyTableError(f"{len(timed)} timed networks are too few: time {HELD_OUT + LEAST_FITTED} or more")
    known = dict(model.named_modules())
    if not timed[0].layers or not all(sum(network.layers.values()) > 0 for network in timed):
        raise LatencyTableError("the table has layers that take no time: time the networks again")
    sizes = groups.sizes
    for network in timed:
        fits = len(network.widths) == len(sizes) and all(0 < w <= s for w, s in zip(network.widths, sizes, strict=True))
        if not fits or network.layers.keys() != timed[0].layers.keys() or not network.layers.keys() <= known.keys():
            raise LatencyTableError("the times are of another network: make the table from this one")
        if not all(
            math.isfinite(value) and value >= 0 for value in (network.ms, network.rest, *network.layers.values())
        ):
            raise LatencyTableError("the table has times that are no numbers: time the networks again")


def _times(timed: Sequence[TimedNetwork], layer: str) -> Floats:
    """Of one layer; scaled so that the parts of each network add up to the whole, which was timed with more care."""
    return np.array([n.layers[layer] * n.ms / max(sum(n.layers.values()) + n.rest, 1e-9) for n in timed])


def _layer_terms(model: nn.Module, groups: Groups, name: str, widths: Tensor, times: Floats) -> list[Term]:
    """Terms of the layer's time, those of coefficient zero left out."""
    out: Count = (name, "out")
    inputs: Count = (name, "in")
    forms: list[tuple[Count | None, Count | None]] = [(None, None), (out, None)]
    if not layers.is_depthwise(model.get_submodule(name)):
        forms += [(inputs, None), (out, inputs)]
    counts = ChannelCounts.of(model, groups, [out, inputs])(widths).numpy()
    kept = {out: counts[:, 0], inputs: counts[:, 1], None: np.ones(len(widths))}
    features = np.stack([kept[left] * kept[right] for left, right in forms], 1)
    coefficients = _non_negative(features, times)
    return [(float(c), *form) for c, form in zip(coefficients, forms, strict=True) if c > 0]


def _non_negative(features: Floats, times: Floats) -> Floats:
    """Coefficients >= 0 of least relative squares: an error of a tenth counts alike in short and in long times."""
    weight = 1 / np.maximum(times, 1e-3 * max(times.max(), 1e-9))
    scale = features.max(0) + 1e-12
    found, _ = nnls(features / scale * weight[:, None], times * weight)
    coefficients: Floats = found / scale
    return coefficients
