"""Zero-invariant groups of any network: which slices of which layers can be removed together.

A *group* is the set of parameter slices which, when all zero, make a structure's output zero whatever the input
(ATO, section 3.1). A *group set* gathers the groups of one width: the 64 channels of a residual stream, say.
"""

import math
import warnings
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch_pruning as tp
from torch import Tensor, nn
from torch_pruning import ops

from atopipe.ato import axes
from atopipe.ato.axes import AXES, Axis
from atopipe.ato.capture import Call, tensors
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


class _Channel(NamedTuple):
    """A channel of a node, and the channel of the root layer that it follows; the names are the graph's."""

    idx: int
    root_idx: int


class _Coupled(NamedTuple):
    """What the dependency graph couples to a root layer: channel c of a node follows channel `roots[c]` of the root."""

    node: Any
    roots: dict[int, int]
    out: bool

    @property
    def axis(self) -> Axis:
        return "out" if self.out else "in"


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

        A width that crosses the module's boundary stays whole. Raises whatever tracing may stumble over.
        """
        with limits(GRAPH_SECONDS, GRAPH_GIBIBYTES):
            graph, entries = _dependency_graph(self.model.get_submodule(scope), call)
            return [self._width(scope, items, followed, entries) for items, followed in _coupled_layers(graph)]

    def _width(
        self, scope: str, items: Sequence[_Coupled], followed: bool, entries: Collection[Any]
    ) -> GroupSet | Unprunable:
        layers = [i for i in items if i.node.module in self.names and not axes.is_elementwise(i.node.module)]
        name, channels = self.names[items[0].node.module], axes.channels(items[0].node.module, "out")
        holders = frozenset(self.names[item.node.module] for item in layers if item.out)
        obstacle = next(filter(None, (self._obstacle(item, scope, entries) for item in items)), None)
        mismatch = next(filter(None, map(self._mismatch, layers)), None)
        if mismatch is None and not followed:
            mismatch = f"its channels cannot be followed beyond '{self.names[layers[-1].node.module]}'"
        if reason := obstacle or mismatch:
            return Unprunable(name, channels, reason, holders, settled=mismatch is None)
        blocks = math.lcm(*(axes.blocks(item.node.module) for item in layers))
        size = channels // blocks  # channels that lie a block apart in grouped convolutions go together
        if channels % blocks or size == 1:
            many = channels > 1 and f"the {blocks} blocks of its grouped layers leave no choice"
            reason = many or "it is but one channel"
            return Unprunable(name, channels, reason, holders, settled=True)
        members = tuple(_member(item, self.names, size) for item in layers)
        pairs = zip(layers, members, strict=True)
        reason = next(filter(None, (_imbalance(i.node.module, member, size) for i, member in pairs)), None)
        return Unprunable(name, channels, reason, holders) if reason else GroupSet(name, size, members)

    def _obstacle(self, item: _Coupled, scope: str, entries: Collection[Any]) -> str | None:
        """Why a coupling forbids removal, whatever else is coupled; None where nothing forbids it."""
        module = item.node.module
        if item.node.grad_fn in entries:
            return f"they are combined with the input of {_called(scope)}"
        if item.node.type == ops.OPTYPE.OUTPUT or (item.out and not item.node.outputs):
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

    def _mismatch(self, item: _Coupled) -> str | None:
        """Why the graph must be wrong about a coupling; None where it may be right."""
        module = item.node.module
        if isinstance(module, axes.PRUNABLE) and not max(item.roots) < axes.channels(module, item.axis):
            return f"its channels cannot be matched with those of '{self.names[module]}'"
        return None


def _called(scope: str) -> str:
    return f"'{scope}'" if scope else "the network"


def _dependency_graph(module: nn.Module, call: Call) -> tuple[Any, Collection[Any]]:
    """The library's graph, and those of its operations through which inputs enter.

    Inputs and outputs pass through an operation of their own, so that the graph shows where they take part.
    """
    entries = set()

    def enter(tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            return tensor
        entered = tensor.detach().requires_grad_().clone()
        entries.add(entered.grad_fn)
        return entered

    def leave(output: Any) -> list[Tensor]:
        return [tensor.sum() for tensor in tensors(output) if tensor.requires_grad]

    with warnings.catch_warnings(), torch.enable_grad():
        warnings.simplefilter("ignore")  # its notes on parameters outside layers: the probe judges those networks
        graph = tp.DependencyGraph().build_dependency(
            module, call, forward_fn=lambda m, c: c.run(m, enter), output_transform=leave, verbose=False
        )
    return graph, entries


def _coupled_layers(graph: Any) -> Iterator[tuple[list[_Coupled], bool]]:
    """For each width of the graph, all that is coupled to its first layer, and whether it was followed to the end."""
    widths = [axes.channels(module, axis) for module in graph.module2node for axis in AXES if _counts(module)]
    limit = 2 * max(widths, default=0)
    seen: set[Any] = set()
    for module, node in graph.module2node.items():
        if isinstance(module, axes.MATRIX_LAYERS) and module not in seen:
            items, followed = _follow(graph, node, limit)
            seen |= {item.node.module for item in items if item.out}
            yield items, followed


def _counts(module: object) -> bool:
    return isinstance(module, (*axes.MATRIX_LAYERS, *axes.CHANNEL_NORMS))


def _follow(graph: Any, root: Any, limit: int) -> tuple[list[_Coupled], bool]:
    """Every node that cutting outputs of `root` would cut, channel by channel.

    The library's own walk derives all index mappings anew for every root, and does not end where a rolled image seems
    to lead ever new channels round a loop. This one uses the mappings as they are, and stops where a channel meets one
    that follows another channel of the root, or where there are more than `limit`.
    """
    cut = graph.get_pruner_of_module(root.module).prune_out_channels
    start = [_Channel(i, i) for i in range(axes.channels(root.module, "out"))]
    reached: dict[tuple[Any, Any], dict[int, int]] = {}
    followed, waiting = True, [(root, cut, start)]
    while waiting and followed:
        node, handler, channels = waiting.pop()
        roots = reached.setdefault((node, handler), {})
        new = [channel for channel in channels if roots.get(channel.idx) != channel.root_idx]
        kept = (roots.setdefault(c.idx, c.root_idx) == c.root_idx is not None and 0 <= c.idx < limit for c in new)
        followed = len(new) <= limit and all(kept)
        triggered = [dependency for dependency in node.dependencies if new and dependency.is_triggered_by(handler)]
        waiting += [(d.target, d.handler, _mapped(new, d.index_mapping)) for d in triggered]
    items = [_Coupled(n, roots, graph.is_out_channel_pruning_fn(fn)) for (n, fn), roots in reached.items() if roots]
    return items, followed


def _mapped(channels: list[_Channel], mappings: Sequence[Any]) -> list[_Channel]:
    for mapping in mappings:
        channels = channels if mapping is None else mapping(channels)
    return channels


def _member(item: _Coupled, names: dict[nn.Module, str], size: int) -> Member:
    followers = [node.module for node in item.node.outputs]
    normed = bool(followers) and all(isinstance(module, axes.CHANNEL_NORMS) for module in followers)
    index, group = torch.tensor(list(item.roots)), torch.tensor(list(item.roots.values())) % size
    return Member(names[item.node.module], item.axis, index, group, masked=item.out and not normed)


def _imbalance(module: nn.Module, member: Member, size: int) -> str | None:
    """Every group must have the same share of a layer, and of each block of a grouped convolution."""
    counts = torch.bincount(member.group, minlength=size)
    blocks = axes.blocks(module)
    width = axes.channels(module, member.axis) // blocks
    owner = torch.full((blocks * width,), -1).index_copy(0, member.index, member.group).view(blocks, width)
    if bool(counts.min() != counts.max()) or (blocks > 1 and bool((owner != owner[0]).any())):
        return f"its channels have unequal shares of '{member.module}'"
    return None
