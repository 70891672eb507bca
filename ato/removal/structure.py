"""The structure of a shrunk network: which channels of which layers are kept. Plain data, and the cut it describes."""

import itertools
import json
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from atopipe.ato import layers
from atopipe.ato.groups import Groups
from atopipe.ato.layers import Axis


class StructureError(ValueError):
    """A structure that does not fit its network."""


@dataclass(frozen=True)
class Structure:
    """`kept[layer][axis]`: the kept channels of a layer along "out" or "in", ascending; whole layers are absent."""

    kept: Mapping[str, Mapping[Axis, tuple[int, ...]]]

    def to_json(self) -> str:
        """Text that `from_json` turns back into an equal structure."""
        return json.dumps({"kept": self.kept}, indent=1)

    @staticmethod
    def from_json(text: str) -> "Structure":
        """Read a structure; raises StructureError when the text is none."""
        try:
            kept = json.loads(text)["kept"]
            return Structure({m: {a: tuple(map(_index, i)) for a, i in cut.items()} for m, cut in kept.items()})
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
            raise StructureError(f"this is not a structure file ({type(error).__name__}: {error})") from error


def _index(value: object) -> int:
    """A whole number as JSON has it: neither 1.0 nor true nor "1"."""
    if type(value) is not int:
        raise TypeError(f"{value!r} is not an index")
    return value


def structure_of(model: nn.Module, groups: Groups, mask: Tensor) -> Structure:
    """What remains of `model` when every group whose mask is 0 is removed."""
    kept: dict[str, dict[Axis, Tensor]] = {}
    for group_set, part in zip(groups.sets, groups.split(mask.cpu() > 0.5), strict=True):
        for member in group_set.members:
            layer = kept.setdefault(member.module, {})
            whole = torch.ones(layers.channels(model.get_submodule(member.module), member.axis), dtype=torch.bool)
            layer.setdefault(member.axis, whole)[member.index] &= part[member.group]
    return Structure({m: {a: tuple(k.nonzero()[:, 0].tolist()) for a, k in cut.items()} for m, cut in kept.items()})


def cut_tensors(model: nn.Module, structure: Structure) -> dict[str, dict[int, Tensor]]:
    """For each tensor of `model` that the structure cuts: dimension -> kept indices (int64).

    `model` has its full width. Raises StructureError for an unknown layer or an index that does not fit.
    """
    modules = dict(model.named_modules())
    cuts: dict[str, dict[int, Tensor]] = {}
    for name, cut in structure.kept.items():
        module = modules.get(name)
        if module is None:
            raise StructureError(f"layer '{name}' of the structure is not in the network")
        for axis, indices in cut.items():
            if axis not in ("out", "in"):
                raise StructureError(f"axis '{axis}' of layer '{name}' of the structure is not in the network")
            _check_indices(name, module, axis, indices)
            for tensor, dim in layers.dims(module, axis).items():
                index = torch.tensor(indices)
                blocked = getattr(module, tensor).shape[dim]  # a grouped convolution's inputs: one block stands for all
                cuts.setdefault(f"{name}.{tensor}", {})[dim] = index[index < blocked]
    return cuts


def _check_indices(name: str, module: nn.Module, axis: Axis, indices: tuple[int, ...]) -> None:
    ascending = all(a < b for a, b in itertools.pairwise(indices))
    if not indices or not ascending or indices[0] < 0 or indices[-1] >= layers.channels(module, axis):
        raise StructureError(f"the kept channels of '{name}' ({axis}) are not ascending indices within its width")


def select(tensor: Tensor, cut: Mapping[int, Tensor]) -> Tensor:
    """The kept part of a tensor (of a weight, of its gradient, of an optimiser's moment of the same shape)."""
    for dim, index in cut.items():
        tensor = tensor.index_select(dim, index.to(tensor.device))
    return tensor


def spread(small: Tensor, full: Tensor, cut: Mapping[int, Tensor]) -> Tensor:
    """Undo `select`: a copy of `full` with `small` at the kept places."""
    if not cut:
        return small.clone()
    grid = torch.meshgrid(*(cut.get(d, torch.arange(n)) for d, n in enumerate(full.shape)), indexing="ij")
    return full.to(small.device, copy=True).index_put(tuple(g.to(small.device) for g in grid), small)


def cut_model(model: nn.Module, structure: Structure) -> nn.Module:
    """Cut `model` in place to the structure: every layer keeps the kept channels, its sizes follow. Returns it."""
    for name, cut in cut_tensors(model, structure).items():
        owner, _, tensor = name.rpartition(".")
        module = model.get_submodule(owner)
        value = getattr(module, tensor)
        small = select(value.detach(), cut).contiguous()
        setattr(module, tensor, nn.Parameter(small, value.requires_grad) if isinstance(value, nn.Parameter) else small)
    for name in structure.kept:
        layers.refresh_attributes(model.get_submodule(name))
    return model
