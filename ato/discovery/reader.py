"""From dependency graphs to group sets: which channels go together, before any proof."""

import math
from collections import Counter
from collections.abc import Sequence

import torch
from torch import nn

from atopipe.ato import layers
from atopipe.ato.discovery.capture import Call, GraphError, Twin
from atopipe.ato.discovery.dependencies import Coupled, coupled_widths
from atopipe.ato.discovery.limits import LimitError, limits
from atopipe.ato.execution import is_out_of_memory
from atopipe.ato.groups import GroupSet, Member, Unprunable

GRAPH_SECONDS, GRAPH_GIBIBYTES = 20, 4


class GraphReader:
    """Reads from dependency graphs which channels of a network go together: promises, before any proof.

    A width that a layer returns among other things, or in a container, is not pruned: no mask could be applied to it.
    """

    def __init__(self, twin: Twin) -> None:
        self.model = model = twin.model
        self.several = {name for name, call in twin.calls.items() if not call.gives_tensor}
        self.names = {module: name for name, module in model.named_modules()}
        owners = Counter(p for module in model.modules() for p in module.parameters(recurse=False))
        self.shared = {parameter for parameter, count in owners.items() if count > 1}

    def read(self, scope: str, call: Call, seconds: float = GRAPH_SECONDS) -> list[GroupSet | Unprunable]:
        """The widths within the module `scope` ("": the whole network), when called with `call`.

        It takes at most so many seconds of processor time. A width that crosses the module's boundary is not pruned.
        Raises GraphError where the module cannot be traced.
        """
        try:
            with limits(min(seconds, GRAPH_SECONDS), GRAPH_GIBIBYTES):
                widths = list(coupled_widths(self.model.get_submodule(scope), call))
        except (Exception, LimitError) as error:  # the tracer raises whatever it stumbles over
            if isinstance(error, Exception) and is_out_of_memory(error):
                raise
            raise GraphError(
                f"channels cannot be followed through {_called(scope)} ({self._why(scope, error)})"
            ) from error
        return [self._width(scope, items, followed) for items, followed in widths]

    def _why(self, scope: str, error: BaseException) -> str:
        """What the tracer stumbled over: a layer that gives no single tensor, or what it says itself."""
        inside = self.model.get_submodule(scope).modules()
        odd = [self.names[m] for m in inside if isinstance(m, layers.PRUNABLE) and self.names[m] in self.several]
        first_line = next(iter(str(error).splitlines()), "no message")
        if odd:
            return f"layer '{odd[0]}' returns more than a tensor"
        return first_line if isinstance(error, LimitError) else f"{type(error).__name__}: {first_line}"

    def _width(self, scope: str, items: Sequence[Coupled], followed: bool) -> GroupSet | Unprunable:
        coupled = [i for i in items if i.module in self.names and not layers.is_elementwise(i.module)]
        name, channels = self.names[items[0].module], layers.channels(items[0].module, "out")
        holders = frozenset(self.names[item.module] for item in coupled if item.out)
        obstacle = next(filter(None, (self._obstacle(item, scope) for item in items)), None)
        mismatch = next(filter(None, map(self._mismatch, coupled)), None)
        if mismatch is None and not followed:
            mismatch = f"its channels cannot be followed beyond '{self.names[coupled[-1].module]}'"
        if reason := obstacle or mismatch:
            return Unprunable(name, channels, reason, holders, final=mismatch is None)
        blocks = math.lcm(*(layers.blocks(item.module) for item in coupled))
        size = channels // blocks  # channels that lie a block apart in grouped convolutions go together
        if channels % blocks or size == 1:
            many = channels > 1 and f"the {blocks} blocks of its grouped layers leave no choice"
            reason = many or "it is but one channel"
            return Unprunable(name, channels, reason, holders, final=True)
        members = tuple(_member(item, self.names, size) for item in coupled)
        pairs = zip(coupled, members, strict=True)
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
        if module not in self.names or layers.is_elementwise(module):
            return None
        layer = f"'{self.names[module]}'"
        if not self.shared.isdisjoint(module.parameters(recurse=False)):
            return f"{layer} shares its parameters with another layer"
        if not isinstance(module, layers.PRUNABLE):
            return f"{type(module).__name__} {layer} works across these channels, so removing some changes the others"
        if self.names[module] in self.several:
            return f"{layer} returns more than a tensor"
        if (tensor := layers.computed(module)) is not None:
            return f"{layer} computes its {tensor} from other tensors: fold it into a plain one to prune them"
        if isinstance(module, layers.CHANNEL_NORMS) and getattr(module, "weight", None) is None:
            return f"{type(module).__name__} {layer} has no scale and shift that could be set to zero"
        return None

    def _mismatch(self, item: Coupled) -> str | None:
        """Why the graph must be wrong about a coupling; None where it may be right."""
        module = item.module
        if isinstance(module, layers.PRUNABLE) and not max(item.roots) < layers.channels(module, item.axis):
            return f"its channels cannot be matched with those of '{self.names[module]}'"
        return None


def _called(scope: str) -> str:
    return f"'{scope}'" if scope else "the network"


def _member(item: Coupled, names: dict[nn.Module, str], size: int) -> Member:
    normed = bool(item.followers) and all(isinstance(module, layers.CHANNEL_NORMS) for module in item.followers)
    index, group = torch.tensor(list(item.roots)), torch.tensor(list(item.roots.values())) % size
    return Member(names[item.module], item.axis, index, group, masked=item.out and not normed)


def _imbalance(module: nn.Module, member: Member, size: int) -> str | None:
    """Every group must have the same share of a layer, and of each block of a grouped convolution."""
    counts = torch.bincount(member.group, minlength=size)
    blocks = layers.blocks(module)
    width = layers.channels(module, member.axis) // blocks
    owner = torch.full((blocks * width,), -1).index_copy(0, member.index, member.group).view(blocks, width)
    if bool(counts.min() != counts.max()) or (blocks > 1 and bool((owner != owner[0]).any())):
        return f"its channels have unequal shares of '{member.module}'"
    return None
