"""The parameters of groups as they stand in the layers: their norms, and scaling whole groups in place."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from atopipe.ato import layers
from atopipe.ato.groups import Groups


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
    """All parameters of `total` groups; made once, it stays true until the network is cut."""

    slices: tuple[Slice, ...]
    total: int

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
        return GroupSlices(tuple(found.values()), groups.total)

    @torch.no_grad()
    def scale(self, factors: Tensor) -> None:
        """Multiply every slice of each group by the group's factor [G], in place."""
        factors = torch.cat([factors, factors.new_ones(1)])
        for part in self.slices:
            part.parameter.mul_(part.along(factors.to(part.parameter)[part.lookup]))

    @torch.no_grad()
    def products(self, left: Sequence[Tensor], right: Sequence[Tensor]) -> Tensor:
        """Inner product of each group's slices in two lists of tensors like `parameters`; [G]."""
        sums = left[0].new_zeros(self.total + 1)
        for part, one, other in zip(self.slices, left, right, strict=True):
            product = (one * other).movedim(part.dim, 0)
            sums.index_add_(0, part.lookup, product.reshape(len(product), -1).sum(1))
        return sums[:-1]

    @torch.no_grad()
    def norms(self) -> Tensor:
        """Euclidean norm of each group over all its slices, [G]."""
        squares = self.slices[0].parameter.new_zeros(self.total + 1)
        for part in self.slices:
            others = [dim for dim in range(part.parameter.dim()) if dim != part.dim]
            lengths = torch.linalg.vector_norm(part.parameter, dim=others) if others else part.parameter
            squares.index_add_(0, part.lookup, lengths.square())
        return squares[:-1].sqrt()

    @property
    def parameters(self) -> list[Tensor]:
        """The parameters that hold slices, in a fixed order."""
        return [part.parameter for part in self.slices]


def _parameters_along_out(module: nn.Module) -> list[tuple[Tensor, int]]:
    tensors = [(getattr(module, name), dim) for name, dim in layers.dims(module, "out").items()]
    return [(tensor, dim) for tensor, dim in tensors if isinstance(tensor, nn.Parameter)]


def scale_groups(model: nn.Module, groups: Groups, factors: Tensor) -> None:
    """`GroupSlices.scale`, for a single use."""
    GroupSlices.of(model, groups).scale(factors)


def group_norms(model: nn.Module, groups: Groups) -> Tensor:
    """`GroupSlices.norms`, for a single use."""
    return GroupSlices.of(model, groups).norms()
