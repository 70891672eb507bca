"""Which layers a dependency graph couples: the only place that knows Torch-Pruning, which makes the graph."""

import math
import warnings
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch_pruning as tp
from torch import Tensor, nn
from torch_pruning import ops

from atopipe.ato import layers
from atopipe.ato.discovery.capture import Call, tensors
from atopipe.ato.layers import AXES, Axis


@dataclass(frozen=True, eq=False)
class Coupled:
    """What the graph couples to a root layer: channel c of `module` follows channel `roots[c]` of the root.

    `module`: a layer, a parameter outside layers, or the library's stand-in for an operation; `followers` work on its
    output. `out`: its outputs are cut, not only its inputs. `enters`, `leaves`: the width meets the input of the
    traced module, or is its output.
    """

    module: Any
    followers: tuple[Any, ...]
    roots: dict[int, int]
    out: bool
    enters: bool
    leaves: bool

    @property
    def axis(self) -> Axis:
        return "out" if self.out else "in"


class _Channel(NamedTuple):
    """A channel of a node, and the channel of the root layer that it follows; the names are the graph's."""

    idx: int
    root_idx: int


def coupled_widths(module: nn.Module, call: Call) -> Iterator[tuple[list[Coupled], bool]]:
    """For each width in `module`, all that is coupled to its first layer, and whether it was followed to its end.

    `module` is in evaluation mode, and its parameters have gradients. Raises whatever tracing may stumble over.
    """
    graph, entries = _trace(module, call)
    widths = [layers.channels(module, axis) for module in graph.module2node for axis in AXES if _counts(module)]
    seen: set[Any] = set()
    for root, node in graph.module2node.items():
        if isinstance(root, layers.MATRIX_LAYERS) and root not in seen:
            items, followed = _follow(graph, node, entries, limit=2 * max(widths))
            seen |= {item.module for item in items if item.out}
            yield items, followed


class _Graph(tp.DependencyGraph):  # type: ignore[misc]  # the library is not typed
    """Infers the channels of every operation once: the library follows all paths, of which there may be 2^depth."""

    def __init__(self) -> None:
        super().__init__()
        self.outputs: dict[Any, int | None] = {}
        self.inputs: dict[Any, int | None] = {}

    def get_out_channels(self, module_or_node: Any) -> int | None:
        """Of a layer its own; of an operation what comes in."""
        own: int | None = super().get_out_channels(module_or_node)
        if own is not None or not hasattr(module_or_node, "dependencies"):
            return own
        if module_or_node not in self.outputs:
            self.outputs[module_or_node] = None
            self.outputs[module_or_node] = self._come_in(module_or_node)
        return self.outputs[module_or_node]

    def get_in_channels(self, module_or_node: Any) -> int | None:
        """Of a layer its own; of an operation what the next layer reads."""
        own: int | None = super().get_in_channels(module_or_node)
        if own is not None or not hasattr(module_or_node, "dependencies"):
            return own
        if module_or_node not in self.inputs:
            self.inputs[module_or_node] = None
            self.inputs[module_or_node] = self._are_read(module_or_node)
        return self.inputs[module_or_node]

    def _come_in(self, node: Any) -> int | None:
        counts = (self._between(before, node) for before in node.inputs)
        return _total(counts) if node.type == ops.OPTYPE.CONCAT else next(filter(None, counts), None)

    def _between(self, before: Any, node: Any) -> int | None:
        if before.type == ops.OPTYPE.SPLIT and before.module.split_sizes is not None:
            return next((s for o, s in zip(before.outputs, before.module.split_sizes, strict=False) if o is node), None)
        return self.get_out_channels(before)

    def _are_read(self, node: Any) -> int | None:
        counts = (self._read_by(after, node) for after in node.outputs)
        return _total(counts) if node.type == ops.OPTYPE.SPLIT else next(filter(None, counts), None)

    def _read_by(self, after: Any, node: Any) -> int | None:
        whole = self.get_in_channels(after)
        if after.type != ops.OPTYPE.CONCAT or whole is None:
            return whole
        others = [self._between(sibling, after) for sibling in after.inputs if sibling is not node]
        return whole - sum(count or 0 for count in others) if others else None


def _total(counts: Iterator[int | None]) -> int | None:
    every = list(counts)
    return None if None in every else sum(count or 0 for count in every) or None


def _trace(module: nn.Module, call: Call) -> tuple[_Graph, Collection[Any]]:
    """The graph, and those of its operations through which inputs enter.

    Inputs and outputs pass through a separate operation, so that the graph shows where they take part.
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

    graph = _Graph()
    with warnings.catch_warnings(), torch.enable_grad():
        warnings.simplefilter("ignore")  # its notes on parameters outside layers: the probe judges those networks
        graph.build_dependency(
            module, call, forward_fn=lambda m, c: c.run(m, enter), output_transform=leave, verbose=False
        )
    return graph, entries


def _counts(module: object) -> bool:
    return isinstance(module, (*layers.MATRIX_LAYERS, *layers.CHANNEL_NORMS))


def _follow(graph: _Graph, root: Any, entries: Collection[Any], limit: int) -> tuple[list[Coupled], bool]:
    """Every node that cutting outputs of `root` would cut, channel by channel.

    The library's own walk derives all index mappings again for every root, and does not end where a rolled image seems
    to lead ever new channels round a loop. This one uses the mappings as they are, and stops where a channel meets one
    that follows another channel of the root, or where there are more than `limit`.
    """
    cut = graph.get_pruner_of_module(root.module).prune_out_channels
    start = [_Channel(i, i) for i in range(layers.channels(root.module, "out"))]
    reached: dict[tuple[Any, Any], dict[int, int]] = {}
    followed, waiting = True, [(root, cut, start)]
    while waiting and followed:
        node, handler, channels = waiting.pop()
        roots = reached.setdefault((node, handler), {})
        new = [channel for channel in channels if roots.get(channel.idx) != channel.root_idx]
        kept = (roots.setdefault(c.idx, c.root_idx) == c.root_idx is not None and 0 <= c.idx < limit for c in new)
        followed = len(new) <= limit and all(kept)
        triggered = [dependency for dependency in node.dependencies if new and dependency.is_triggered_by(handler)]
        followed = followed and all(_spread(d.index_mapping) * len(new) <= limit for d in triggered)
        waiting += [(d.target, d.handler, _mapped(new, d.index_mapping)) for d in triggered if followed]
    found = [(node, graph.is_out_channel_pruning_fn(fn), roots) for (node, fn), roots in reached.items() if roots]
    return [_coupled(node, out, roots, entries) for node, out, roots in found], followed


def _spread(mappings: Sequence[Any]) -> int:
    """How many channels one becomes: those of an image that is flattened."""
    return math.prod(getattr(m, "_stride", 1) for m in mappings if not getattr(m, "reverse", True))


def _mapped(channels: list[_Channel], mappings: Sequence[Any]) -> list[_Channel]:
    for mapping in mappings:
        channels = channels if mapping is None else mapping(channels)
    return channels


def _coupled(node: Any, out: bool, roots: dict[int, int], entries: Collection[Any]) -> Coupled:
    followers = tuple(after.module for after in node.outputs)
    leaves = node.type == ops.OPTYPE.OUTPUT or (out and not followers)
    return Coupled(node.module, followers, roots, out, enters=node.grad_fn in entries, leaves=leaves)
