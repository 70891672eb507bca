"""Find the groups of a network by following its channels through one run.

Every output channel of a layer gets a label, and every number computed from it carries the label on (`rules`), through
whatever the network's own code does between the layers. Where a layer reads labels, it becomes a member of their
groups. One forward pass, no graph: what the network's code computes is what is seen.
"""

from collections import Counter
from collections.abc import Iterator, MutableMapping
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

from atopipe.ato import axes
from atopipe.ato.axes import Axis
from atopipe.ato.groups import GraphError, Groups, GroupSet, Member, Unprunable
from atopipe.ato.labels import Labels
from atopipe.ato.rules import Operation, rule_for

Holding = dict[tuple[str, Axis], Tensor]  # the labels along each axis of each layer, in the order of the run


@torch.no_grad()
def trace_groups(model: nn.Module, example: Tensor) -> Groups:
    """The groups that one run of the network in evaluation mode suggests, before any proof.

    `example`: one image [1, C, H, W], of the network's type. Weights are only read. Raises GraphError when the network
    does not run or does not give a tensor.
    """
    trace = _Trace(model)
    training = {module: module.training for module in model.modules()}
    try:
        with explained(model, example), trace.watching(model.eval()), trace:
            output = model(example)
    finally:
        for module, mode in training.items():
            module.training = mode
    if not isinstance(output, Tensor) or output.dim() != 2:
        name = type(model).__name__
        what = f"a tensor of shape {list(output.shape)}" if isinstance(output, Tensor) else f"a {type(output).__name__}"
        raise GraphError(
            f"{name} returns {what}, but must return logits [images, classes]; wrap it in a module that does"
        )
    trace.finish(output)
    return _assemble(trace)


@contextmanager
def explained(model: nn.Module, images: Tensor) -> Iterator[None]:
    """Say in one sentence that the network does not run, whatever its code stumbles over."""
    try:
        yield
    except Exception as error:
        raise GraphError(
            f"{type(model).__name__} does not run on an image of shape {list(images.shape[1:])} "
            f"({type(error).__name__}: {' '.join(str(error).split())[:200]}); choose another input_size or model"
        ) from error


class _Trace(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves it untyped
    """What is known after each operation: the labels of every living activation, and of every layer's axes."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.labels = Labels()
        self.holding: Holding = {}
        self.exposed: set[str] = set()  # layers whose output is read by something else than a norm layer
        self._names = {module: name for name, module in model.named_modules()}
        self._refusals = _refusals(model)
        layers = [(name, m) for name, m in model.named_modules() if isinstance(m, axes.PRUNABLE)]
        self._owners = {p: name for name, layer in layers for p in layer.parameters(recurse=False)}
        self._known: MutableMapping[Tensor, Tensor] = WeakTensorKeyDictionary()
        self._producers: MutableMapping[Tensor, str] = WeakTensorKeyDictionary()
        self._calls: list[nn.Module] = []
        self._inside = 0  # layers whose own forward is running: their insides are not looked at

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        if not self._inside:
            operation = Operation(func, args, kwargs or {}, output, self._known.get, self._where(), self._excuse())
            for tensor in operation.operands:
                self._note_use(tensor)
            if any(True for _ in operation.labelled):
                self._assign(output, rule_for(operation)(operation, self.labels))
        return output

    def _assign(self, output: Any, found: Tensor | list[Tensor] | None) -> None:
        tensors = [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]
        each = found if isinstance(found, list | tuple) else [found] * len(tensors)
        for tensor, labels in zip(tensors, each, strict=True):
            if labels is not None and labels.shape == tensor.shape:
                self._known[tensor] = labels
            else:
                self._known.pop(tensor, None)

    def _note_use(self, tensor: Tensor) -> None:
        if tensor in self._producers:
            self.exposed.add(self._producers[tensor])
        if isinstance(tensor, nn.Parameter) and tensor in self._owners:
            self._refusals.setdefault(self._owners[tensor], "its parameters are used outside of it")

    def _where(self) -> str:
        if not self._calls:
            return "the network"
        module = self._calls[-1]
        name = self._names[module]
        return f"{type(module).__name__} '{name}'" if name else type(module).__name__

    def _excuse(self) -> str | None:
        name = self._names[self._calls[-1]] if self._calls else ""
        return f"'{name}' cannot be cut: {self._refusals[name]}" if name in self._refusals else None

    @contextmanager
    def watching(self, model: nn.Module) -> Iterator[None]:
        """While active, every module tells when it starts and ends, and every layer what it reads and gives."""
        with ExitStack() as hooks:
            for module in model.modules():
                hooks.callback(module.register_forward_pre_hook(self._enter, with_kwargs=True).remove)
                hooks.callback(module.register_forward_hook(self._leave, with_kwargs=True).remove)
            yield

    def _is_layer(self, module: nn.Module) -> bool:
        return isinstance(module, axes.PRUNABLE) and self._names[module] not in self._refusals

    def _enter(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        self._calls.append(module)
        self._inside += self._is_layer(module)

    def _leave(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        if self._is_layer(module):
            self._inside -= 1
            if not self._inside:
                self._through_layer(module, tree_leaves((args, kwargs))[0], output)
        self._calls.pop()

    def _through_layer(self, module: nn.Module, read: Tensor, output: Tensor) -> None:
        name = self._names[module]
        incoming = self._channels_of(read, module)
        if not isinstance(module, axes.CHANNEL_NORMS):
            self._note_use(read)
        if not axes.is_channel_wise(module):
            self._hold(module, "in", incoming)
            given = self._hold(module, "out", self.holding.get((name, "out"), self._fresh(module)))
        elif bool(incoming.any()):
            given = self._hold(module, "out", incoming)
        else:
            return
        dim = axes.channel_dim(module) % output.dim()
        self._known[output] = given.view(-1, *(1,) * (output.dim() - 1 - dim)).expand(output.shape)
        self._producers[output] = name

    def _fresh(self, module: nn.Module) -> Tensor:
        return self.labels.fresh(axes.channels(module, "out"))

    def _channels_of(self, read: Tensor, module: nn.Module) -> Tensor:
        """The label of each channel that the layer reads, 0 without; labels that lie across positions are pinned."""
        axis: Axis = "out" if axes.is_channel_wise(module) else "in"
        labels, nothing = self._known.get(read), torch.zeros(axes.channels(module, axis), dtype=torch.int64)
        if labels is None:
            return nothing
        dim = axes.channel_dim(module) % labels.dim()
        if not set(self.labels.varying(labels)) <= {dim}:
            self.labels.pin(labels, f"its channels cannot be matched with those of '{self._names[module]}'")
            return nothing
        return labels.movedim(dim, -1).flatten(0, -2)[0]

    def _hold(self, module: nn.Module, axis: Axis, labels: Tensor) -> Tensor:
        """Record what lies along a layer's axis: all calls agree, all blocks of a grouped convolution shrink alike."""
        name = self._names[module]
        held = self.holding.setdefault((name, axis), labels)
        self.labels.tie(held, labels, f"'{name}' also works on channels that stay")
        blocks = held.view(axes.blocks(module), -1)
        self.labels.tie(blocks[:1], blocks, f"'{name}' works on blocks of channels, some of which stay")
        return held

    def finish(self, output: Tensor) -> None:
        """Pin the logits, and the layers whose parameters were also used elsewhere."""
        labels = self._known.get(output)
        if labels is not None:
            self.labels.pin(labels, "it is the network's output")
        for (name, _), held in self.holding.items():
            if name in self._refusals:
                self.labels.pin(held, f"'{name}' cannot be cut: {self._refusals[name]}")


def _refusals(model: nn.Module) -> dict[str, str]:
    """Layers that are not treated as such, and why."""
    uses = Counter(p for m in model.modules() for p in m.parameters(recurse=False))
    reasons: dict[str, str] = {}
    for name, module in model.named_modules():
        if isinstance(module, axes.PRUNABLE):
            if any(uses[p] > 1 for p in module.parameters(recurse=False)):
                reasons[name] = "it shares its parameters with another layer"
            elif (reason := axes.refusal(module)) is not None:
                reasons[name] = reason
    return reasons


class _Class(NamedTuple):
    """Channels that are tied together: along each axis of each layer, which."""

    reason: str | None
    channels: dict[tuple[str, Axis], list[int]]

    @property
    def shape(self) -> tuple[tuple[tuple[str, Axis], int], ...]:
        """Classes of one shape make up one group set."""
        return tuple((place, len(indices)) for place, indices in self.channels.items())

    @property
    def name(self) -> str:
        return next(iter(self.channels))[0]


def _assemble(trace: _Trace) -> Groups:
    classes: dict[int, _Class] = {}
    for place, held in trace.holding.items():
        for i, label in enumerate(held.tolist()):
            if label:
                root = trace.labels.find(label)
                if root not in classes:
                    classes[root] = _Class(trace.labels.reason(root), {})
                classes[root].channels.setdefault(place, []).append(i)
    free: dict[Any, list[_Class]] = {}
    kept: Counter[tuple[str, str]] = Counter()
    for item in classes.values():
        if item.reason is None:
            free.setdefault(item.shape, []).append(item)
        else:
            kept[item.name, item.reason] += item.shape[0][1]
    for shape, members in list(free.items()):
        if len(members) == 1:
            kept[members[0].name, "all of its channels go together"] += shape[0][1]
            del free[shape]
    names: Counter[str] = Counter()
    sets = tuple(_group_set(members, trace.exposed, names) for members in free.values())
    return Groups(sets, tuple(Unprunable(name, size, reason) for (name, reason), size in kept.items()))


def _group_set(classes: list[_Class], exposed: set[str], names: Counter[str]) -> GroupSet:
    name = classes[0].name
    names[name] += 1
    members = []
    for module, axis in classes[0].channels:
        index = torch.tensor([item.channels[module, axis] for item in classes])
        group = torch.arange(len(classes)).repeat_interleave(index.shape[1])
        members.append(Member(module, axis, index.flatten(), group, masked=axis == "out" and module in exposed))
    unique = name if names[name] == 1 else f"{name}#{names[name]}"
    return GroupSet(unique, len(classes), tuple(members))
