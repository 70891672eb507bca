"""Zero-invariant groups of any network: which slices of which layers can be removed together.

A *group* is the set of parameter slices which, when all zero, make a structure's output zero whatever the input
(ATO, section 3.1). A *group set* gathers the groups of one width: the 64 channels of a residual stream, say.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from atopipe.ato import axes
from atopipe.ato.axes import Axis
from atopipe.ato.capture import Call, GraphError
from atopipe.ato.dependencies import Coupled, coupled_widths
from atopipe.ato.limits import limits

GRAPH_SECONDS, GRAPH_GIBIBYTES = 20, 4


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


class GraphReader:
    """Reads from dependency graphs which channels of a network go together: promises, before any proof.

    `model` is a copy for tracing, in evaluation mode, whose parameters have gradients.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.names = {module: name for name, module in model.named_modules()}
        owners = Counter(p for module in model.modules() for p in module.parameters(recurse=False))
        self.shared = {parameter for parameter, count in owners.items() if count > 1}

    def read(self, scope: str, call: Call) -> list[GroupSet | Unprunable]:
        """The widths within the module `scope` ("": the whole network), when called with `call`.

        A width that crosses the module's boundary stays whole. Raises GraphError where the module cannot be traced.
        """
        try:
            with limits(GRAPH_SECONDS, GRAPH_GIBIBYTES):
                widths = list(coupled_widths(self.model.get_submodule(scope), call))
        except Exception as error:  # the tracer raises whatever it stumbles over
            first_line = next(iter(str(error).splitlines()), "no message")
            raise GraphError(
                f"channels cannot be followed through {_called(scope)} ({type(error).__name__}: {first_line})"
            ) from error
        return [self._width(scope, items, followed) for items, followed in widths]

    def _width(self, scope: str, items: Sequence[Coupled], followed: bool) -> GroupSet | Unprunable:
        layers = [i for i in items if i.module in self.names and not axes.is_elementwise(i.module)]
        name, channels = self.names[items[0].module], axes.channels(items[0].module, "out")
        holders = frozenset(self.names[item.module] for item in layers if item.out)
        obstacle = next(filter(None, (self._obstacle(item, scope) for item in items)), None)
        mismatch = next(filter(None, map(self._mismatch, layers)), None)
        if mismatch is None and not followed:
            mismatch = f"its channels cannot be followed beyond '{self.names[layers[-1].module]}'"
        if reason := obstacle or mismatch:
            return Unprunable(name, channels, reason, holders, settled=mismatch is None)
        blocks = math.lcm(*(axes.blocks(item.module) for item in layers))
        size = channels // blocks  # channels that lie a block apart in grouped convolutions go together
        if channels % blocks or size == 1:
            many = channels > 1 and f"the {blocks} blocks of its grouped layers leave no choice"
            reason = many or "it is but one channel"
            return Unprunable(name, channels, reason, holders, settled=True)
        members = tuple(_member(item, self.names, size) for item in layers)
        pairs = zip(layers, members, strict=True)
        reason = next(filter(None, (_imbalance(i.module, member, size) for i, member in pairs)), None)
        return Unprunable(name, channels, reason, holders) if reason else GroupSet(name, size, members)

    def _obstacle(self, item: Coupled, scope: str) -> str | None:
        """Why a coupling forbids removal, whatever else is coupled; None where nothing forbids it."""
        module = item.module
        if item.enters:
            return f"they are combined with the input of {_called(scope)}"
        if item.leaves:
            return (
                f"they leave '{scope}', around which nothing can be followed" if scope else "it is the network's output"
            )
        if isinstance(module, nn.Parameter):
            return "a free parameter is combined with these channels"
        if module not in self.names or axes.is_elementwise(module):
            return None
        layer = f"'{self.names[module]}'"
        if not self.shared.isdisjoint(module.parameters(recurse=False)):
            return f"{layer} shares its parameters with another layer"
        if not isinstance(module, axes.PRUNABLE):
            return f"{type(module).__name__} {layer} works across these channels, so removing some changes the others"
        if isinstance(module, axes.CHANNEL_NORMS) and getattr(module, "weight", None) is None:
            return f"{type(module).__name__} {layer} has no scale and shift that could be set to zero"
        return None

    def _mismatch(self, item: Coupled) -> str | None:
        """Why the graph must be wrong about a coupling; None where it may be right."""
        module = item.module
        if isinstance(module, axes.PRUNABLE) and not max(item.roots) < axes.channels(module, item.axis):
            return f"its channels cannot be matched with those of '{self.names[module]}'"
        return None


def _called(scope: str) -> str:
    return f"'{scope}'" if scope else "the network"


def _member(item: Coupled, names: dict[nn.Module, str], size: int) -> Member:
    normed = bool(item.followers) and all(isinstance(module, axes.CHANNEL_NORMS) for module in item.followers)
    index, group = torch.tensor(list(item.roots)), torch.tensor(list(item.roots.values())) % size
    return Member(names[item.module], item.axis, index, group, masked=item.out and not normed)


def _imbalance(module: nn.Module, member: Member, size: int) -> str | None:
    """Every group must have the same share of a layer, and of each block of a grouped convolution."""
    counts = torch.bincount(member.group, minlength=size)
    blocks = axes.blocks(module)
    width = axes.channels(module, member.axis) // blocks
    owner = torch.full((blocks * width,), -1).index_copy(0, member.index, member.group).view(blocks, width)
    if bool(counts.min() != counts.max()) or (blocks > 1 and bool((owner != owner[0]).any())):
        return f"its channels have unequal shares of '{member.module}'"
    return None
