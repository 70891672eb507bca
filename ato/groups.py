"""Zero-invariant groups of any network: which slices of which layers can be removed together.

A *group* is the set of parameter slices which, when all zero, make a structure's output zero whatever the input
(ATO, section 3.1). A *group set* gathers the groups of one width: the 64 channels of a residual stream, say.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from atopipe.ato.layers import Axis


@dataclass(frozen=True, eq=False)
class Member:
    """Channels `index[j]` along one axis of one layer belong to group `group[j]` of the set.

    `index`, `group`: int64 of equal length. An "out" member holds slices of the group; an "in" member only reads its
    output. `masked`: a mask multiplies this layer's output (no norm layer follows it directly).
    """

    module: str
    axis: Axis
    index: Tensor
    group: Tensor
    masked: bool


@dataclass(frozen=True, eq=False)
class GroupSet:
    """`size` groups of one width, and every layer that holds or reads them; named after its first layer."""

    name: str
    size: int
    members: tuple[Member, ...]

    @property
    def layers(self) -> frozenset[str]:
        """The layers that hold slices of the groups."""
        return frozenset(member.module for member in self.members if member.axis == "out")

    @property
    def channels_per_group(self) -> int:
        """1, or the number of blocks where grouped convolutions tie channels together."""
        return min(len(member.index) // self.size for member in self.members if member.axis == "out")


@dataclass(frozen=True)
class Unprunable:
    """A width of `size` channels that stays whole, and why.

    `layers` have it as their output. `settled`: a closer look at parts of the network could not change it.
    """

    name: str
    size: int
    reason: str
    layers: frozenset[str] = frozenset()
    settled: bool = False


@dataclass(frozen=True, eq=False)
class Groups:
    """All group sets of a network. A *mask* is one flat vector over them: set after set, 1 keep, 0 remove."""

    sets: tuple[GroupSet, ...]
    unprunable: tuple[Unprunable, ...]

    @property
    def sizes(self) -> list[int]:
        """Groups per set."""
        return [s.size for s in self.sets]

    @property
    def total(self) -> int:
        """Length of a mask."""
        return sum(self.sizes)

    def split(self, flat: Tensor) -> tuple[Tensor, ...]:
        """The part of a flat vector that belongs to each set."""
        return torch.split(flat, self.sizes)

    def widths(self, mask: Tensor) -> Tensor:
        """Kept groups per set, differentiable in the mask."""
        return torch.stack([part.sum() for part in self.split(mask)])


class NoGroupsError(Exception):
    """The network has no group that can be removed without changing what the rest computes."""
