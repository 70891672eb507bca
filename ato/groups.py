"""Zero-invariant groups of any network: which slices of which layers can be removed together.

A *group* is the set of parameter slices which, when all zero, make a structure's output zero whatever the input
(ATO, section 3.1). A *group set* gathers the groups of one width: the 64 channels of a residual stream, say.
"""

import copy
import math
import signal
import threading
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch_pruning as tp
from torch import Tensor, nn
from torch_pruning import ops

from atopipe.ato import axes
from atopipe.ato.axes import Axis

TRACE_SECONDS = 30


class GraphError(Exception):
    """The network's channels cannot be followed from layer to layer."""


class NoGroupsError(Exception):
    """The network has no group that can be removed without changing what the rest computes."""


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
    def channels_per_group(self) -> int:
        """1, or the number of blocks where grouped convolutions tie channels together."""
        return min(len(member.index) // self.size for member in self.members if member.axis == "out")


@dataclass(frozen=True)
class Unprunable:
    """A width of `size` channels that stays whole, and why."""

    name: str
    size: int
    reason: str


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


class _Coupled(NamedTuple):
    """What the dependency graph couples to a root layer: channel `indices[j]` follows root channel `roots[j]`."""

    node: Any
    indices: list[int]
    roots: list[int] | None
    out: bool

    @property
    def axis(self) -> Axis:
        return "out" if self.out else "in"

    def pairs(self) -> Iterator[tuple[int, int]]:
        return zip(self.indices, self.roots or (), strict=True)


def trace_groups(model: nn.Module, example: Tensor) -> Groups:
    """The groups that the dependency graph promises, before any proof; `model` is not modified.

    `example`: one image [1, C, H, W]. Raises GraphError when the network cannot be traced.
    """
    twin = copy.deepcopy(model).cpu().float().requires_grad_(True)
    example = example.detach().cpu().float()
    _require_logits(twin, example)
    names = {module: name for name, module in twin.named_modules()}
    shared = _shared_parameters(twin)
    found = [_read_group(items, names, shared) for items in _dependency_groups(twin, example)]
    sets = tuple(item for item in found if isinstance(item, GroupSet))
    return Groups(sets, tuple(item for item in found if isinstance(item, Unprunable)))


def _require_logits(model: nn.Module, example: Tensor) -> None:
    """Raises GraphError unless one image gives one tensor of logits."""
    name = type(model).__name__
    try:
        with torch.no_grad():
            output = model.eval()(example)
    except Exception as error:  # whatever the network's code raises
        raise GraphError(
            f"{name} does not run on an image of shape {list(example.shape[1:])} ({type(error).__name__}: {error}); "
            "choose another input_size or another model"
        ) from error
    if not isinstance(output, Tensor) or output.dim() != 2:
        what = f"a tensor of shape {list(output.shape)}" if isinstance(output, Tensor) else f"a {type(output).__name__}"
        raise GraphError(
            f"{name} returns {what}, but must return logits [images, classes]; wrap it in a module that does"
        )


def _shared_parameters(model: nn.Module) -> set[nn.Parameter]:
    """Parameters that two layers hold: each would want to cut them its own way."""
    owners = Counter(p for module in model.modules() for p in module.parameters(recurse=False))
    return {parameter for parameter, count in owners.items() if count > 1}


def _dependency_groups(model: nn.Module, example: Tensor) -> Iterator[list[_Coupled]]:
    with warnings.catch_warnings(), torch.enable_grad(), deadline(TRACE_SECONDS):
        warnings.simplefilter("ignore")  # its notes on parameters outside layers: the probe judges those networks
        try:
            # A tuple: a bare tensor would first be unpacked along its batch axis.
            graph = tp.DependencyGraph().build_dependency(model, (example,), verbose=False)
            groups = list(graph.get_all_groups())
        except Exception as error:  # the tracer raises whatever it stumbles over
            raise GraphError(
                f"the channels of {type(model).__name__} cannot be followed from layer to layer "
                f"({type(error).__name__}: {error}); choose another model"
            ) from error
    for group in groups:
        outs = [graph.is_out_channel_pruning_fn(item.dep.handler) for item in group]
        yield [_Coupled(i.dep.target, i.idxs, i.root_idxs, out) for i, out in zip(group, outs, strict=True)]


@contextmanager
def deadline(seconds: int) -> Iterator[None]:
    """Raises TimeoutError in its block when that takes longer: tracing some networks would not end for hours.

    Needs the main thread of a POSIX system; elsewhere there is no limit.
    """
    if not hasattr(signal, "SIGALRM") or threading.current_thread() is not threading.main_thread():
        yield
        return

    def ring(*_: object) -> None:
        raise TimeoutError(f"it takes longer than {seconds} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def _read_group(
    items: Sequence[_Coupled], names: dict[nn.Module, str], shared: set[nn.Parameter]
) -> GroupSet | Unprunable:
    name, channels = names[items[0].node.module], len(items[0].indices)
    reason = next(filter(None, (_obstacle(item, names, shared) for item in items)), None)
    if reason:
        return Unprunable(name, channels, reason)
    layers = [item for item in items if item.node.module in names and not axes.is_elementwise(item.node.module)]
    blocks = math.lcm(*(axes.blocks(item.node.module) for item in layers))
    if channels % blocks:
        return Unprunable(name, channels, f"its channels do not divide into the {blocks} blocks of its grouped layers")
    size = channels // blocks  # channels that lie a block apart in grouped convolutions go together
    members = [(item.node.module, _member(item, names, size)) for item in _merge(layers)]
    reason = next(filter(None, (_imbalance(module, member, size) for module, member in members)), None)
    if size == 1:
        reason = "there is but one group of them"
    return Unprunable(name, channels, reason) if reason else GroupSet(name, size, tuple(m for _, m in members))


def _obstacle(item: _Coupled, names: dict[nn.Module, str], shared: set[nn.Parameter]) -> str | None:
    """Why a coupling forbids removal, read off its type and indices; None where nothing forbids it."""
    module = item.node.module
    if item.node.type == ops.OPTYPE.OUTPUT or (item.out and not item.node.outputs):
        return "it is the network's output"
    if isinstance(module, nn.Parameter):
        return "a free parameter is combined with these channels"
    if module not in names or axes.is_elementwise(module):
        return None
    layer = f"'{names[module]}'"
    if not shared.isdisjoint(module.parameters(recurse=False)):
        return f"{layer} shares its parameters with another layer"
    if not isinstance(module, axes.PRUNABLE):
        return f"{type(module).__name__} {layer} works across these channels, so removing some changes the others"
    if isinstance(module, axes.CHANNEL_NORMS) and getattr(module, "weight", None) is None:
        return f"{type(module).__name__} {layer} has no scale and shift that could be set to zero"
    width, indices = axes.channels(module, item.axis), item.indices
    if item.roots is None or len(set(indices)) < len(indices) or not 0 <= min(indices) <= max(indices) < width:
        return f"its channels cannot be matched with those of {layer}"
    return None


def _merge(layers: Sequence[_Coupled]) -> list[_Coupled]:
    """One item per layer and axis: a layer may be reached along several paths."""
    merged: dict[tuple[nn.Module, bool], _Coupled] = {}
    for item in layers:
        known = merged.get((item.node.module, item.out))
        pairs = dict(known.pairs()) if known else {}
        pairs |= dict(item.pairs())
        merged[item.node.module, item.out] = item._replace(indices=list(pairs), roots=list(pairs.values()))
    return list(merged.values())


def _member(item: _Coupled, names: dict[nn.Module, str], size: int) -> Member:
    followers = [node.module for node in item.node.outputs]
    normed = bool(followers) and all(isinstance(module, axes.CHANNEL_NORMS) for module in followers)
    group = torch.tensor(item.roots) % size
    return Member(names[item.node.module], item.axis, torch.tensor(item.indices), group, masked=item.out and not normed)


def _imbalance(module: nn.Module, member: Member, size: int) -> str | None:
    """Every group must have the same share of a layer, and of each block of a grouped convolution."""
    counts = torch.bincount(member.group, minlength=size)
    blocks = axes.blocks(module)
    width = axes.channels(module, member.axis) // blocks
    owner = torch.full((blocks * width,), -1).index_copy(0, member.index, member.group).view(blocks, width)
    if bool(counts.min() != counts.max()) or (blocks > 1 and bool((owner != owner[0]).any())):
        return f"its channels have unequal shares of '{member.module}'"
    return None
