"""The parameters of groups as they stand in the layers: their norms, and scaling whole groups in place."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from atopipe.ato import layers
from atopipe.ato.groups import Groups

Item = TypeVar("Item")


@dataclass(frozen=True, eq=False)
class Slice:
    """A parameter that holds slices of groups along dimension `dim`; it aliases the model.

    `lookup` [n]: the group that each index along `dim` belongs to, `groups.total` where there is none.
    """

    parameter: Tensor
    dim: int
    lookup: Tensor

    def along(self, values: Tensor) -> Tensor:
        """`values` [n], shaped so that they multiply the parameter along `dim`."""
        return values.view(-1, *(1,) * (self.parameter.dim() - 1 - self.dim))


@dataclass(frozen=True, eq=False)
class GroupSlices:
    """All parameters of `total` groups; made once, it stays true until the network is cut.

    `lookup`: those of all slices, one behind the other, so that what is done to all of them is one operation.
    """

    slices: tuple[Slice, ...]
    total: int
    lookup: Tensor

    @staticmethod
    def of(model: nn.Module, groups: Groups) -> "GroupSlices":
        """Every parameter once, also where two layers share it."""
        found: dict[int, Slice] = {}
        offset = 0
        for group_set in groups.sets:
            for member in group_set.members:
                if member.axis == "out":
                    for parameter, dim in _parameters_along_out(model.get_submodule(member.module)):
                        whole = torch.full((parameter.shape[dim],), groups.total, device=parameter.device)
                        lookup = found.setdefault(id(parameter), Slice(parameter, dim, whole)).lookup
                        # A grouped transposed convolution has one block of weights that stands for all its blocks.
                        held = member.index < len(lookup)
                        lookup[member.index[held].to(lookup.device)] = (member.group[held] + offset).to(lookup.device)
            offset += group_set.size
        slices = tuple(found.values())
        return GroupSlices(slices, groups.total, torch.cat([part.lookup for part in slices]))

    @torch.no_grad()
    def scale(self, factors: Tensor) -> None:
        """Multiply every slice of each group by the group's factor [G], in place."""
        factors = torch.cat([factors, factors.new_ones(1)]).to(self.slices[0].parameter)[self.lookup]
        parts = zip(self.slices, torch.split(factors, [len(part.lookup) for part in self.slices]), strict=True)
        vectors, others = _parted(parts, lambda pair: pair[0].parameter.dim() == 1)
        if vectors:
            torch._foreach_mul_([part.parameter for part, _ in vectors], [values for _, values in vectors])
        for part, values in others:
            part.parameter.mul_(part.along(values))

    @torch.no_grad()
    def products(self, left: Sequence[Tensor], right: Sequence[Tensor]) -> Tensor:
        """Inner product of each group's slices in two lists of tensors like `parameters`; [G]."""
        products = torch._foreach_mul(list(left), list(right))
        return self._sums([_rows(p, part.dim).sum(1) for part, p in zip(self.slices, products, strict=True)])

    @torch.no_grad()
    def norms(self) -> Tensor:
        """Euclidean norm of each group over all its slices, [G]."""
        return self._sums([_lengths(part) for part in self.slices], torch.square).sqrt()

    def _sums(self, values: Sequence[Tensor], change: Callable[[Tensor], Tensor] = lambda value: value) -> Tensor:
        """The sums of the changed values of each slice's indices over each group, in the order of the slices; [G]."""
        together = change(torch.cat(list(values)))
        return together.new_zeros(self.total + 1).index_add_(0, self.lookup, together)[:-1]

    @property
    def parameters(self) -> list[Tensor]:
        """The parameters that hold slices, in a fixed order."""
        return [part.parameter for part in self.slices]


def _lengths(part: Slice) -> Tensor:
    """Euclidean norms along the dimension of the slices, up to their sign."""
    others = [dim for dim in range(part.parameter.dim()) if dim != part.dim]
    return torch.linalg.vector_norm(part.parameter, dim=others) if others else part.parameter


def _rows(tensor: Tensor, dim: int) -> Tensor:
    return tensor.movedim(dim, 0).reshape(tensor.shape[dim], -1)


def _parted(items: Iterable[Item], holds: Callable[[Item], bool]) -> tuple[list[Item], list[Item]]:
    """Those for which it holds, and the others."""
    both: tuple[list[Item], list[Item]] = [], []
    for item in items:
        both[0 if holds(item) else 1].append(item)
    return both


def _parameters_along_out(module: nn.Module) -> list[tuple[Tensor, int]]:
    tensors = [(getattr(module, name), dim) for name, dim in layers.dims(module, "out").items()]
    return [(tensor, dim) for tensor, dim in tensors if isinstance(tensor, nn.Parameter)]


def scale_groups(model: nn.Module, groups: Groups, factors: Tensor) -> None:
    """`GroupSlices.scale`, for a single use."""
    GroupSlices.of(model, groups).scale(factors)


def group_norms(model: nn.Module, groups: Groups) -> Tensor:
    """`GroupSlices.norms`, for a single use."""
    return GroupSlices.of(model, groups).norms()
