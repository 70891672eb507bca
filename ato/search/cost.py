"""What a network costs, as a differentiable function of the widths of its group sets.

FLOPs and parameters are a sum of products of two channel counts, and every channel count is an affine function of the
widths: FLOPs of a convolution = 2 * positions * kernel / blocks * (outputs kept) * (inputs kept).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol, Self

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd

from atopipe.ato import layers
from atopipe.ato.discovery.capture import tensors, trace_twin
from atopipe.ato.groups import Groups
from atopipe.ato.layers import AXES, Axis

Count = tuple[str, Axis]  # the channels of a layer along an axis
Term = tuple[float, Count | None, Count | None]  # coefficient, two channel counts (None stands for one)


class Cost(Protocol):
    """A quantity that a network of given widths takes: float64, non-decreasing in every width, differentiable.

    `name`: what it is called in files and settings; `unit`: what it is counted in, as users know it; `dense`: of the
    network at full width.
    """

    @property
    def name(self) -> str: ...

    @property
    def unit(self) -> str: ...

    @property
    def dense(self) -> float: ...

    def __call__(self, widths: Tensor) -> Tensor:
        """The cost at the widths [sets], a scalar in `unit`."""
        ...

    def to(self, device: torch.device) -> Self:
        """The same cost on another device."""
        ...


def kept_fraction(cost: Cost, widths: Tensor) -> float:
    """The cost at the widths [sets] as a fraction of the dense one."""
    return float(cost(widths) / cost.dense)


@dataclass(frozen=True, eq=False)
class BilinearCost:
    """cost(widths) = sum_t coefficient_t * kept[left_t] * kept[right_t],  kept = base + share @ widths.

    Shapes: coefficient, left, right [terms]; base [counts]; share [counts, sets]; widths [sets]. All float64 but the
    indices.
    """

    name: str
    unit: str
    coefficient: Tensor
    left: Tensor
    right: Tensor
    base: Tensor
    share: Tensor
    sizes: Tensor

    def __call__(self, widths: Tensor) -> Tensor:
        """The cost at the given widths, a float64 scalar; differentiable."""
        kept = self.base + self.share @ widths.to(self.base)
        return (self.coefficient * kept[self.left] * kept[self.right]).sum()

    @cached_property
    def dense(self) -> float:
        """The cost of the whole network."""
        return float(self(self.sizes))

    def to(self, device: torch.device) -> Self:
        """The same cost on another device."""
        tensors = (self.coefficient, self.left, self.right, self.base, self.share, self.sizes)
        there = type(self)(self.name, self.unit, *(tensor.to(device) for tensor in tensors))
        vars(there)["dense"] = self.dense  # known already: to compute it there would wait for the device
        return there


def flops(model: nn.Module, groups: Groups, example: Tensor) -> BilinearCost:
    """FLOPs for one image: two per multiply-accumulate of convolution and linear layers; nothing else is counted.

    The projections of `nn.MultiheadAttention` are linear layers; they are not pruned.

    `example`: one image [1, C, H, W] that fixes the number of positions at which each layer works.
    """
    modules = dict(model.named_modules())
    terms: list[Term] = []
    for name, positions in count_positions(model, example).items():
        module = modules[name]
        kernel = math.prod(getattr(module, "kernel_size", (1,)))
        reads: Count | None = None if layers.is_depthwise(module) else (name, "in")
        terms.append((2 * positions * kernel / layers.blocks(module), (name, "out"), reads))
    terms.append((count_attention(model, example), None, None))
    return assemble("flops", "FLOPs", model, groups, terms)


def flops_of_layers(model: nn.Module, example: Tensor) -> dict[str, float]:
    """FLOPs for one image of each convolution and linear layer of the dense network, by name."""
    modules = dict(model.named_modules())

    def per_position(module: nn.Module) -> float:
        inputs = 1 if layers.is_depthwise(module) else layers.channels(module, "in")
        kernel = math.prod(getattr(module, "kernel_size", (1,)))
        return 2 * kernel * layers.channels(module, "out") * inputs / layers.blocks(module)

    return {
        name: positions * per_position(modules[name]) for name, positions in count_positions(model, example).items()
    }


def params(model: nn.Module, groups: Groups, example: Tensor) -> BilinearCost:
    """Number of parameters; the same whatever the `example` image."""
    terms: list[Term] = []
    for name, module in model.named_modules():
        for tensor, parameter in module.named_parameters(recurse=False):
            counts: list[Count] = [(name, axis) for axis in AXES if _extends(module, tensor, axis)]
            divisor = math.prod(layers.channels(module, axis) for _, axis in counts)
            left, right = [*counts, None, None][:2]
            terms.append((parameter.numel() / divisor, left, right))
    return assemble("params", "parameters", model, groups, terms)


COSTS: Mapping[str, Callable[[nn.Module, Groups, Tensor], Cost]] = {"flops": flops, "params": params}


def _extends(module: nn.Module, tensor: str, axis: Axis) -> bool:
    """Whether the tensor grows with the layer's channels along `axis`."""
    has_channels = isinstance(module, layers.PRUNABLE) and not layers.is_elementwise(module)
    return has_channels and tensor in layers.dims(module, axis)


def count_positions(model: nn.Module, example: Tensor) -> dict[str, float]:
    """At how many positions each convolution and linear layer applies its kernel to one image, over all its calls."""
    positions: dict[str, float] = {}

    def count(name: str, module: nn.Module, inputs: Mapping[str, Tensor], output: Any) -> None:
        if isinstance(module, _ConvTransposeNd):  # it applies its kernel at each position of its *input*
            applied = next(iter(inputs.values())).numel() / module.in_channels
        else:
            applied = next(tensors(output)).numel() / layers.channels(module, "out")
        positions[name] = positions.get(name, 0.0) + applied

    _observe(model, example, layers.MATRIX_LAYERS, count)
    return positions


def count_attention(model: nn.Module, example: Tensor) -> float:
    """FLOPs for one image of the four projections of all `nn.MultiheadAttention`, which runs them out of sight."""
    counted: list[float] = []

    def count(name: str, module: nn.Module, inputs: Mapping[str, Tensor], output: Any) -> None:
        query, key, value = (inputs.get(word, inputs.get(str(i))) for i, word in enumerate(("query", "key", "value")))
        if isinstance(module, nn.MultiheadAttention) and query is not None and key is not None and value is not None:
            counted.append(2.0 * module.embed_dim * (2 * query.numel() + key.numel() + value.numel()))

    _observe(model, example, (nn.MultiheadAttention,), count)
    return sum(counted)


def _observe(
    model: nn.Module,
    example: Tensor,
    kinds: tuple[type[nn.Module], ...],
    see: Callable[[str, nn.Module, Mapping[str, Tensor], Any], None],
) -> None:
    """Show every call of modules of these kinds for one image: name, module, inputs by name or place, output."""
    twin = trace_twin(model, example[:1])

    def hook(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], dict[str, Tensor], Any], None]:
        return lambda module, args, kwargs, output: see(
            name, module, {**{str(place): value for place, value in enumerate(args)}, **kwargs}, output
        )

    for name, module in twin.model.named_modules():
        if isinstance(module, kinds):
            module.register_forward_hook(hook(name), with_kwargs=True)
    # With gradients: without them some layers of torch take a path that runs no hooks.
    twin.calls[""].run(twin.model, Tensor.detach)


@dataclass(frozen=True, eq=False)
class ChannelCounts:
    """Channel counts as affine functions of the widths: kept = base + share @ widths; base [counts]."""

    base: Tensor
    share: Tensor

    @staticmethod
    def of(model: nn.Module, groups: Groups, counts: Sequence[Count]) -> "ChannelCounts":
        """Those of the network, in this order."""
        row = {count: i for i, count in enumerate(counts)}
        whole = [layers.channels(model.get_submodule(layer), axis) for layer, axis in counts]
        base, share = torch.tensor(whole, dtype=torch.float64), torch.zeros(len(counts), len(groups.sets)).double()
        for column, group_set in enumerate(groups.sets):
            for member in group_set.members:
                i = row.get((member.module, member.axis))
                if i is not None:
                    share[i, column] += len(member.index) / group_set.size
                    base[i] -= len(member.index)
        return ChannelCounts(base, share)

    def __call__(self, widths: Tensor) -> Tensor:
        """The counts [..., counts] at widths [..., sets]."""
        return self.base + widths.to(self.base) @ self.share.T


def assemble(name: str, unit: str, model: nn.Module, groups: Groups, terms: Sequence[Term]) -> BilinearCost:
    """The sum of the terms, as a function of the widths; the first count is the constant one."""
    named: list[Count] = sorted({count for term in terms for count in term[1:] if count is not None})
    row: dict[Count | None, int] = {None: 0, **{count: i for i, count in enumerate(named, start=1)}}
    counts = ChannelCounts.of(model, groups, named)
    base = torch.cat([torch.ones(1, dtype=torch.float64), counts.base])
    share = torch.cat([torch.zeros(1, len(groups.sets), dtype=torch.float64), counts.share])
    coefficient = torch.tensor([term[0] for term in terms], dtype=torch.float64)
    left, right = torch.tensor([row[term[1]] for term in terms]), torch.tensor([row[term[2]] for term in terms])
    sizes = torch.tensor(groups.sizes, dtype=torch.float64)
    return BilinearCost(name, unit, coefficient, left, right, base, share, sizes)
