"""Zero-invariant groups of any network: which slices of which layers can be removed together.

A *group* is the set of parameter slices which, when all zero, make a structure's output zero whatever the input
(ATO, section 3.1). A *group set* gathers the groups of one width: the 64 channels of a residual stream, say.
"""

import json
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from atopipe.ato import layers
from atopipe.ato.layers import AXES, Axis

T = TypeVar("T")


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
    """A width of `size` channels that is not pruned, and why.

    `layers` have it as their output. `final`: a closer look at parts of the network could not change it.
    """

    name: str
    size: int
    reason: str
    layers: frozenset[str] = frozenset()
    final: bool = False


@dataclass(frozen=True, eq=False)
class Groups:
    """All group sets of a network. A *mask* is one flat vector over them: set after set, 1 keep, 0 remove.

    `proven_in_training`: whether the proof covers the network in training mode too; it cannot where its outputs are
    random then even without dropout layers.
    """

    sets: tuple[GroupSet, ...]
    unprunable: tuple[Unprunable, ...]
    proven_in_training: bool = True

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

    def to_json(self) -> str:
        """Text that `from_json` turns back into equal groups."""
        plain = {
            "sets": [{"name": s.name, "size": s.size, "members": [_plain(m) for m in s.members]} for s in self.sets],
            "unprunable": [{**asdict(width), "layers": sorted(width.layers)} for width in self.unprunable],
            "proven_in_training": self.proven_in_training,
        }
        return json.dumps(plain, indent=1)

    @staticmethod
    def from_json(text: str) -> "Groups":
        """Read groups; raises GroupsError when the text is none."""
        try:
            plain = json.loads(text)
            sets = [GroupSet(_is(s["name"], str), _is(s["size"], int), _members(s)) for s in _is(plain["sets"], list)]
            whole = [_unprunable(width) for width in _is(plain["unprunable"], list)]
            return Groups(tuple(sets), tuple(whole), _is(plain["proven_in_training"], bool))
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError, RuntimeError) as error:
            raise GroupsError(f"this is not a file of groups ({type(error).__name__}: {error})") from error

    def require_fit(self, model: nn.Module) -> None:
        """Raises GroupsError unless every member's channels are within a layer of `model`."""
        modules = dict(model.named_modules())
        for group_set in self.sets:
            if not group_set.layers:
                raise GroupsError(f"the groups of '{group_set.name}' are held by no layer")
            for member in group_set.members:
                module = modules.get(member.module)
                width = layers.channels(module, member.axis) if isinstance(module, layers.PRUNABLE) else 0
                if not 0 <= int(member.index.min()) <= int(member.index.max()) < width:
                    raise GroupsError(f"the groups name channels of '{member.module}' that the network does not have")


def _is(value: Any, kind: type[T]) -> T:
    """The value, which is of this kind as JSON has it: true is no number."""
    if type(value) is not kind:
        raise TypeError(f"{value!r} is not of type {kind.__name__}")
    return value


def _unprunable(plain: dict[str, Any]) -> Unprunable:
    texts = (_is(plain["name"], str), _is(plain["size"], int), _is(plain["reason"], str))
    names = frozenset(_is(name, str) for name in _is(plain["layers"], list))
    return Unprunable(*texts, names, _is(plain["final"], bool))


def _plain(member: Member) -> dict[str, Any]:
    return {**vars(member), "index": member.index.tolist(), "group": member.group.tolist()}


def _members(group_set: dict[str, Any]) -> tuple[Member, ...]:
    return tuple(_member(plain, group_set["size"]) for plain in _is(group_set["members"], list))


def _member(plain: dict[str, Any], size: int) -> Member:
    numbers = {name: [_is(value, int) for value in _is(plain[name], list)] for name in ("index", "group")}
    index, group = (torch.tensor(values, dtype=torch.int64) for values in numbers.values())
    if plain["axis"] not in AXES or not len(index) or len(index) != len(group):
        raise ValueError("a member has no axis, or other numbers of channels and groups")
    if min(numbers["group"]) < 0 or max(numbers["group"]) != size - 1 or len(set(numbers["group"])) != size:
        raise ValueError("a member has other groups than its set")
    return Member(_is(plain["module"], str), plain["axis"], index, group, _is(plain["masked"], bool))


class GroupsError(ValueError):
    """A file of groups that cannot be read."""


class NoGroupsError(Exception):
    """The network has no group that can be removed without changing what the rest computes."""
