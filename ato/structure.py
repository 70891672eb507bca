"""The structure of a shrunk network: which channels of which layers are kept. Plain data, and the cut it describes."""

import copy
import itertools
import json
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from atopipe.ato import axes
from atopipe.ato.axes import Axis
from atopipe.ato.groups import Groups


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
            return Structure({m: {a: tuple(map(int, i)) for a, i in cut.items()} for m, cut in kept.items()})
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise StructureError(f"this is not a structure file ({type(error).__name__}: {error})") from error


def structure_of(model: nn.Module, groups: Groups, mask: Tensor) -> Structure:
    """What remains of `model` when every group whose mask is 0 is removed."""
    kept: dict[str, dict[Axis, Tensor]] = {}
    for group_set, part in zip(groups.sets, groups.split(mask.cpu() > 0.5), strict=True):
        for member in group_set.members:
            layer = kept.setdefault(member.module, {})
            whole = torch.ones(axes.channels(model.get_submodule(member.module), member.axis), dtype=torch.bool)
            layer.setdefault(member.axis, whole)[member.index] &= part[member.group]
    return Structure({m: {a: tuple(k.nonzero()[:, 0].tolist()) for a, k in cut.items()} for m, cut in kept.items()})


def cut_tensors(model: nn.Module, structure: Structure) -> dict[str, dict[int, Tensor]]:
    """For each tensor of `model` that the structure cuts, by all of its names: dimension -> kept indices (int64).

    `model` has its full width. Raises StructureError for an unknown layer or an index that does not fit.
    """
    modules = dict(model.named_modules())
    aliases: dict[nn.Module, list[str]] = {}
    for alias, module in model.named_modules(remove_duplicate=False):
        aliases.setdefault(module, []).append(alias)
    cuts: dict[str, dict[int, Tensor]] = {}
    for name, cut in structure.kept.items():
        for axis, indices in cut.items():
            module = modules.get(name)
            if module is None or axis not in axes.AXES:
                raise StructureError(f"layer '{name}' axis '{axis}' of the structure is not in the network")
            _check_indices(name, module, axis, indices)
            for tensor, dim in axes.dims(module, axis).items():
                index = torch.tensor(indices)
                blocked = getattr(module, tensor).shape[dim]  # a grouped convolution's inputs: one block stands for all
                for alias in aliases[module]:
                    cuts.setdefault(f"{alias}.{tensor}", {})[dim] = index[index < blocked]
    return cuts


def _check_indices(name: str, module: nn.Module, axis: Axis, indices: tuple[int, ...]) -> None:
    ascending = all(a < b for a, b in itertools.pairwise(indices))
    if not indices or not ascending or indices[0] < 0 or indices[-1] >= axes.channels(module, axis):
        raise StructureError(f"the kept channels of '{name}' ({axis}) are not ascending indices within its width")


def select(tensor: Tensor, cut: Mapping[int, Tensor]) -> Tensor:
    """The kept part of a tensor (of a weight, of its gradient, of an optimiser's moment of the same shape)."""
    for dim, index in sorted(cut.items()):  # rows first: whole rows are cheap to drop
        tensor = tensor.index_select(dim, index.to(tensor.device))
    return tensor


def spread(small: Tensor, full: Tensor, cut: Mapping[int, Tensor]) -> Tensor:
    """The inverse of `select`: a copy of `full` with `small` at the kept places."""
    if not cut:
        return small.clone()
    grid = torch.meshgrid(*(cut.get(d, torch.arange(n)) for d, n in enumerate(full.shape)), indexing="ij")
    return full.to(small.device, copy=True).index_put(tuple(g.to(small.device) for g in grid), small)


def cut_model(model: nn.Module, structure: Structure) -> nn.Module:
    """Cut `model` in place to the structure: every layer keeps the kept channels, its sizes follow. Returns it."""
    for name, small in _cut_values(model, structure).items():
        owner, _, tensor = name.rpartition(".")
        setattr(model.get_submodule(owner), tensor, small)
    return _resize(model, structure)


def cut_copy(model: nn.Module, structure: Structure) -> nn.Module:
    """A copy of `model` cut to the structure; what is cut away is never copied."""
    cut = {id(_tensor(model, name)): small for name, small in _cut_values(model, structure).items()}
    return _resize(copy.deepcopy(model, cut), structure)


def _cut_values(model: nn.Module, structure: Structure) -> dict[str, Tensor]:
    values = {}
    for name, cut in cut_tensors(model, structure).items():
        full = _tensor(model, name)
        small = select(full.detach(), cut).contiguous()
        values[name] = nn.Parameter(small, full.requires_grad) if isinstance(full, nn.Parameter) else small
    return values


def _tensor(model: nn.Module, name: str) -> Tensor:
    owner, _, attribute = name.rpartition(".")
    tensor: Tensor = getattr(model.get_submodule(owner), attribute)
    return tensor


def _resize(model: nn.Module, structure: Structure) -> nn.Module:
    for name, kept in structure.kept.items():
        for axis, indices in kept.items():
            axes.resize(model.get_submodule(name), axis, len(indices))
    return model
