"""How one operation between two layers carries the labels of its inputs to its output.

Operations that move numbers move their labels; element-wise operations tie the labels they bring together; what mixes
numbers of different channels pins them. An operation without a rule pins everything it reads, so a missing rule costs
coverage, never correctness.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.utils._pytree import tree_leaves, tree_map

from atopipe.ato.labels import Labels


@dataclass(frozen=True)
class Operation:
    """One call of an ATen operation; `labels_of` knows the labels of activations, `where` names the module.

    `excuse`: why that module's own operations are refused, where more is known than that they have no rule.
    """

    function: OpOverload
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    output: Any
    labels_of: Callable[[Tensor], Tensor | None]
    where: str
    excuse: str | None

    @property
    def name(self) -> str:
        """The operation's name; `relu` for both `relu` and its in-place form `relu_`."""
        return str(self.function.overloadpacket.__name__).rstrip("_")

    @property
    def operands(self) -> list[Tensor]:
        """Every tensor that the call reads."""
        return [leaf for leaf in tree_leaves((self.args, self.kwargs)) if isinstance(leaf, Tensor)]

    @property
    def labelled(self) -> Iterator[Tensor]:
        """The labels of those operands that have some."""
        return (labels for tensor in self.operands if (labels := self.labels_of(tensor)) is not None)

    def values(self) -> dict[str, Any]:
        """The call's arguments by name, defaults included."""
        parameters = self.function._schema.arguments
        defaults = {p.name: p.default_value for p in parameters if p.has_default_value()}
        return {**defaults, **dict(zip((p.name for p in parameters), self.args, strict=False)), **self.kwargs}

    @property
    def mixes(self) -> str:
        """The reason to pin what this operation mixes."""
        reason = f"{self.where} works across these channels ({self.name}), so removing some changes the others"
        return self.excuse or reason

    @property
    def mismatch(self) -> str:
        """The reason to pin what this operation combines with numbers that stay."""
        return f"{self.where} combines these channels with a tensor of fixed size ({self.name})"


Outcome = Tensor | list[Tensor] | None  # labels of every output, of each output, of none
Rule = Callable[[Operation, Labels], Outcome]


def rule_for(operation: Operation) -> Rule:
    """The rule by the operation's name, or by what its schema tells of it."""
    name = operation.name
    if name in RULES:
        return RULES[name]
    if torch.Tag.pointwise in operation.function.tags:
        return _element_wise
    if any(word in name for word in ("pool", "upsample", "pad")):
        return _within_channels
    if "keepdim" in operation.values():
        return _reduce
    return _refuse


def _move(operation: Operation, labels: Labels) -> Any:
    """Do to the labels what the operation does to the numbers."""

    def follow(value: Any) -> Any:
        if not (isinstance(value, Tensor) and value.is_floating_point()):
            return value
        known = operation.labels_of(value)
        return torch.zeros(value.shape, dtype=torch.int64) if known is None else known

    args, kwargs = tree_map(follow, (operation.args, operation.kwargs))
    return operation.function(*args, **kwargs)


def _reshape(operation: Operation, labels: Labels) -> Outcome:
    """Dividing channels into blocks ties those at the same place of each block: then every block shrinks alike."""
    (before,) = operation.labelled
    after = before.reshape(operation.output.shape)
    varying = labels.varying(after)
    if len(varying) > len(labels.varying(before)):
        for dim in varying[:-1]:
            labels.tie(after.narrow(dim, 0, 1), after, operation.mismatch)
    return after


def _split(operation: Operation, labels: Labels) -> Outcome:
    """Equal parts of the channels shrink alike."""
    pieces: list[Tensor] = list(_move(operation, labels))
    dim = operation.values()["dim"]
    whole = next(operation.labelled)
    if dim % whole.dim() in labels.varying(whole) and len({piece.shape for piece in pieces}) == 1:
        for piece in pieces[1:]:
            labels.tie(pieces[0], piece, operation.mismatch)
    return pieces


def _pad(operation: Operation, labels: Labels) -> Outcome:
    """What is added along the channels belongs to none; what is added around an image belongs to its channels."""
    incoming, pad = next(operation.labelled), list(operation.values()["pad"])
    varying = labels.varying(incoming)
    for dim in set(range(incoming.dim())) - set(varying):
        incoming = incoming.narrow(dim, 0, 1)
        last = 2 * (incoming.dim() - 1 - dim)  # `pad` counts dimensions from the last
        pad[last : last + 2] = [0] * len(pad[last : last + 2])
    return torch.nn.functional.pad(incoming, pad).expand(operation.output.shape)


def _keep(operation: Operation, labels: Labels) -> Outcome:
    return next(operation.labelled)


def _element_wise(operation: Operation, labels: Labels) -> Outcome:
    """Tie the operands' labels; one that is broadcast along the others' channels acts on all of them: it stays."""
    shape = np.broadcast_shapes(*(tensor.shape for tensor in operation.operands))
    known = {i: labels_i for i, t in enumerate(operation.operands) if (labels_i := operation.labels_of(t)) is not None}
    varying = {dim - item.dim() for item in known.values() for dim in labels.varying(item)}  # counted from the last
    result: Tensor | None = None
    for i, tensor in enumerate(operation.operands):
        own = known.get(i, _nothing_in(tensor))
        if any(-dim > own.dim() or own.shape[dim] < shape[dim] for dim in varying):
            labels.pin(own, operation.mixes)
            continue
        if result is not None:
            labels.tie(result, own, operation.mismatch)
        result = own.expand(shape) if result is None or not bool(result.any()) else result
    return result


def _nothing_in(tensor: Tensor) -> Tensor:
    """Labels for a tensor that has none, as small as the tensor was before it was expanded."""
    sizes = [1 if step == 0 else size for size, step in zip(tensor.shape, tensor.stride(), strict=True)]
    return torch.zeros((), dtype=torch.int64).expand(sizes)


def _within_channels(operation: Operation, labels: Labels) -> Outcome:
    """Pooling, resizing and padding: dimensions from 2 on are positions."""
    incoming = next(operation.labelled)
    if any(dim >= 2 for dim in labels.varying(incoming)):
        return _refuse(operation, labels)
    for dim in range(2, incoming.dim()):
        incoming = incoming.narrow(dim, 0, 1)
    return incoming.expand(tree_leaves(operation.output)[0].shape)


def _reduce(operation: Operation, labels: Labels) -> Outcome:
    """Reducing positions changes nothing; reducing stacked branches ties them; reducing channels mixes them."""
    incoming, values = next(operation.labelled), operation.values()
    dims = {dim % incoming.dim() for dim in _dims(values.get("dim"), incoming.dim())}
    varying = set(labels.varying(incoming))
    if varying and varying <= dims:
        return None if operation.name in ZERO_ADDS_NOTHING else _refuse(operation, labels)
    for dim in sorted(dims, reverse=True):
        if dim in varying:
            labels.tie(incoming.narrow(dim, 0, 1), incoming, operation.mismatch)
        incoming = incoming.narrow(dim, 0, 1) if values["keepdim"] else incoming.select(dim, 0)
    return incoming


ZERO_ADDS_NOTHING = ("sum", "linalg_vector_norm")  # over channels, of which some may be missing


def _dims(value: Any, count: int) -> list[int]:
    if value is None or value == []:
        return list(range(count))
    return [value] if isinstance(value, int) else list(value)


def _normalise(operation: Operation, labels: Labels) -> Outcome:
    """Softmax and layer norm mix what lies along their own dimensions."""
    incoming, values = next(operation.labelled), operation.values()
    size = len(values["normalized_shape"]) if "normalized_shape" in values else None
    dims = range(incoming.dim())[-size:] if size else [values["dim"] % incoming.dim()]
    if set(dims) & set(labels.varying(incoming)):
        labels.pin(incoming, operation.mixes)
    return incoming


def _normalise_blocks(operation: Operation, labels: Labels) -> Outcome:
    incoming = next(operation.labelled)
    labels.pin(incoming, operation.mixes)
    return incoming


def _refuse(operation: Operation, labels: Labels) -> Outcome:
    for incoming in operation.labelled:
        labels.pin(incoming, operation.mixes)
    return None


RULES: dict[str, Rule] = {
    **dict.fromkeys(
        ("permute", "transpose", "t", "slice", "select", "unbind", "expand", "unsqueeze", "squeeze"), _move
    ),
    **dict.fromkeys(("cat", "stack", "roll", "flip", "index", "index_select", "repeat", "alias", "detach"), _move),
    **dict.fromkeys(("view", "_unsafe_view"), _reshape),
    **dict.fromkeys(("split", "split_with_sizes"), _split),
    **dict.fromkeys(("clone", "_to_copy", "native_dropout", "zeros_like", "ones_like", "full_like"), _keep),
    **dict.fromkeys(("hardswish", "_prelu_kernel", "rsub", "masked_fill", "log_sigmoid_forward"), _element_wise),
    **dict.fromkeys(("native_layer_norm", "_softmax", "_log_softmax"), _normalise),
    "native_group_norm": _normalise_blocks,
    "constant_pad_nd": _pad,
}
