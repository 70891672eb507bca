"""Apply a mask while the network runs, or set the masked groups to zero: two ways to the same function.

The mask multiplies a layer's output *after* its norm layer: a zero weight before a norm would leave the shift alive.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from atopipe.ato import axes
from atopipe.ato.groups import Groups


@contextmanager
def masked(model: nn.Module, groups: Groups, mask: Tensor) -> Iterator[None]:
    """While active, every group's output is multiplied by its entry of `mask` [groups.total], differentiably.

    Works through forward hooks that are gone afterwards; a mask of ones leaves outputs bit-equal. Between 0 and 1,
    channels that pass another layer before their norm (a concatenation, say) are multiplied at both layers.
    """
    lookups = mask_lookups(model, groups)
    factors = torch.cat([mask, mask.new_ones(1)])
    handles = [
        model.get_submodule(name).register_forward_hook(_multiply(factors[index.to(mask.device)]))
        for name, index in lookups.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def mask_lookups(model: nn.Module, groups: Groups) -> dict[str, Tensor]:
    """For each masked layer: the mask entry of each output channel; `groups.total` where there is none."""
    lookups: dict[str, Tensor] = {}
    offset = 0
    for group_set in groups.sets:
        for member in group_set.members:
            if member.masked:
                width = axes.channels(model.get_submodule(member.module), "out")
                lookup = lookups.setdefault(member.module, torch.full((width,), groups.total))
                lookup[member.index] = member.group + offset
        offset += group_set.size
    return lookups


def _multiply(factor: Tensor) -> Callable[[nn.Module, Any, Tensor], Tensor]:
    def hook(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        dim = axes.channel_dim(module)
        trailing = 0 if dim == -1 else output.dim() - 2
        return output * factor.to(output.dtype).view(-1, *(1,) * trailing)

    return hook


def group_slices(model: nn.Module, groups: Groups) -> list[list[tuple[Tensor, int, Tensor, Tensor]]]:
    """Per set, the parameter slices of its groups: (parameter, dimension, index, group); they alias the model."""
    return [
        [
            (tensor, dim, member.index[within], member.group[within])
            for member in group_set.members
            if member.axis == "out"
            for tensor, dim in _parameters_along_out(model.get_submodule(member.module))
            for within in [member.index < tensor.shape[dim]]  # a transposed convolution's blocks: one stands for all
        ]
        for group_set in groups.sets
    ]


def _parameters_along_out(module: nn.Module) -> list[tuple[Tensor, int]]:
    tensors = [(getattr(module, name), dim) for name, dim in axes.dims(module, "out").items()]
    return [(tensor, dim) for tensor, dim in tensors if isinstance(tensor, nn.Parameter)]


@torch.no_grad()
def scale_groups(model: nn.Module, groups: Groups, factors: Tensor) -> None:
    """Multiply every parameter slice of each group by the group's factor [groups.total], in place."""
    for slices, part in zip(group_slices(model, groups), groups.split(factors), strict=True):
        for tensor, dim, index, group in slices:
            scale = torch.ones(tensor.shape[dim], dtype=tensor.dtype, device=tensor.device)
            scale[index.to(tensor.device)] = part.to(tensor)[group.to(tensor.device)]
            tensor.mul_(scale.view(-1, *(1,) * (tensor.dim() - 1 - dim)))


@torch.no_grad()
def group_products(one: nn.Module, other: nn.Module, groups: Groups) -> Tensor:
    """Inner product of each group's slices in two networks of the same shape, [groups.total]."""
    products = []
    pairs = zip(group_slices(one, groups), group_slices(other, groups), strict=True)
    for group_set, (left, right) in zip(groups.sets, pairs, strict=True):
        product = left[0][0].new_zeros(group_set.size)
        for (tensor, dim, index, group), (partner, *_) in zip(left, right, strict=True):
            per_channel = (tensor * partner).movedim(dim, 0).reshape(tensor.shape[dim], -1).sum(1)
            product.index_add_(0, group.to(product.device), per_channel[index.to(product.device)])
        products.append(product)
    return torch.cat(products)


def group_norms(model: nn.Module, groups: Groups) -> Tensor:
    """Euclidean norm of each group over all its slices, [groups.total]."""
    return group_products(model, model, groups).sqrt()
