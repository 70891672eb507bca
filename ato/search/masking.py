"""Apply a mask while the network runs; the network itself is not edited.

The mask multiplies a layer's output *after* its norm layer: a zero weight before a norm would leave the shift alive.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from atopipe.ato import layers
from atopipe.ato.groups import Groups


@contextmanager
def masked(model: nn.Module, groups: Groups, mask: Tensor) -> Iterator[None]:
    """While active, every group's output is multiplied by its entry of `mask`, [G] or [B, G] for each image its own.

    Differentiable. Works through forward hooks that are gone afterwards; a mask of ones leaves outputs bit-equal.
    Where a norm layer follows only after an addition or a concatenation, a soft mask meets the signal twice; for 0 and
    1 that is the same.
    """
    with masked_at(model, mask_lookups(model, groups), mask):
        yield


@contextmanager
def masked_at(model: nn.Module, lookups: Mapping[str, Tensor], mask: Tensor) -> Iterator[None]:
    """`masked` with `mask_lookups` at hand, for whoever masks the same network again and again."""
    factors = torch.cat([mask, mask.new_ones(*mask.shape[:-1], 1)], -1)
    handles = [
        model.get_submodule(name).register_forward_hook(_multiply(factors[..., index.to(mask.device)]))
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
                width = layers.channels(model.get_submodule(member.module), "out")
                lookup = lookups.setdefault(member.module, torch.full((width,), groups.total))
                lookup[member.index] = member.group + offset
        offset += group_set.size
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    return {name: lookup.to(device) for name, lookup in lookups.items()}  # once, not at every use


def _multiply(factor: Tensor) -> Callable[[nn.Module, Any, Tensor], Tensor]:
    def hook(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        others = (1,) * (output.dim() - 2)
        last = layers.channel_dim(module) == -1
        shape = (*others, factor.shape[-1]) if last else (factor.shape[-1], *others)
        return output * factor.to(output.dtype).view(*factor.shape[:-1], *shape)

    return hook
