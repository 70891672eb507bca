"""Start from trained weights: put the tensors of a checkpoint into a network, and say in one line what was done."""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping

import torch
from torch import Tensor, nn

from atopipe.pipeline.models.weights.head import Build, head_tensors
from atopipe.pipeline.models.weights.match import COUNTER, Match, best_match
from atopipe.pipeline.system.errors import UsageError

Filter = Callable[[object], object]


class HeadError(UsageError):
    """The head of the weights cannot be kept; `found` goes on from the name of the weights."""

    def __init__(self, who: str, found: str) -> None:
        super().__init__(f"--keep-head: {who} {found}: leave --keep-head out, and a new one is trained")
        self.found = found


def load_checkpoint(
    model: nn.Module, checkpoint: object, classes: int, *, build: Build, keep_head: bool | None, who: str
) -> str:
    """Copy the weights of what was read from a file into `model`, and say what was done.

    `build` makes the network for any number of classes; its head is what differs then. It is kept where the file has
    one for as many classes, and newly initialised where not; `keep_head` demands (True) or forbids (False) the former.
    `who`: the file in messages. Raises UsageError for a file of another network.
    """
    wanted = model.state_dict()
    match = best_match(checkpoint, wanted)
    if match is None:
        raise UsageError(f"{who} holds no tensors by name: give safetensors, or a state dict saved by torch.save")
    gaps = _gaps(match.tensors, wanted)
    head = head_tensors(build, classes) if gaps or keep_head is not None else frozenset[str]()
    if keep_head and gaps & head:
        match = _with_renamed_head(match, wanted, head)
        gaps = _gaps(match.tensors, wanted)
    _require_same_network(match, wanted, gaps - head, who)
    fresh = head if gaps or keep_head is False else frozenset[str]()
    if keep_head:
        _require_head(match, head, gaps, classes, who)
    used = {name: tensor for name, tensor in match.tensors.items() if name not in fresh}
    _require_finite(used, who)
    model.load_state_dict({**wanted, **used})
    return _said(match, wanted, used, fresh, classes)


def _gaps(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> frozenset[str]:
    """The tensors of a network that the file lacks, or has in another shape."""
    return frozenset(
        name
        for name, tensor in wanted.items()
        if not name.endswith(COUNTER) and (name not in found or found[name].shape != tensor.shape)
    )


def _require_same_network(match: Match, wanted: Mapping[str, Tensor], gaps: Collection[str], who: str) -> None:
    """Names what is missing or has another shape outside the head."""
    lacking = [name for name in wanted if name in gaps and name not in match.tensors]
    other = [name for name in wanted if name in gaps and name in match.tensors]
    if not match.tensors or not match.fitting:
        raise UsageError(
            f"{who} belongs to another network: none of its {len(match.spare)} tensors, such as {_few(match.spare)}, "
            f"fits one of this model, such as {_few(wanted)}; give weights of this model"
        )
    if lacking:
        have = f"; it has {_few(match.spare)} instead" if match.spare else ""
        raise UsageError(
            f"{who} belongs to another network: it lacks {_few(lacking)}{have}; give weights of this model"
        )
    if other:
        name = other[0]
        more = f" (and {len(other) - 1} more differ)" if len(other) > 1 else ""
        raise UsageError(
            f"{who} belongs to another network: its '{name}' is {list(match.tensors[name].shape)}, "
            f"not {list(wanted[name].shape)}{more}; give weights of this model, or the --model-args it was trained with"
        )


def _with_renamed_head(match: Match, wanted: Mapping[str, Tensor], head: Collection[str]) -> Match:
    """The same, the head taken from the tensors that are left over where they have its shapes, one by one."""
    names = [name for name in wanted if name in head]
    if [wanted[name].shape for name in names] != [tensor.shape for tensor in match.spare.values()]:
        return match
    renamed = dict(zip(names, match.spare.values(), strict=True))
    return Match({**match.tensors, **renamed}, {}, match.key, match.prefix, match.fitting)


def _require_head(match: Match, head: frozenset[str], gaps: frozenset[str], classes: int, who: str) -> None:
    if not head:
        raise HeadError(who, "fits a model that has no layer which depends on the number of classes")
    for name in sorted(head & gaps):
        if name not in match.tensors:
            raise HeadError(who, f"has no '{name}', the head of this model")
        theirs = _classes(match.tensors[name])
        raise HeadError(who, f"has a head for {theirs} classes, where the data have {classes}")


def _classes(tensor: Tensor) -> int:
    return len(tensor) if tensor.ndim else 1


def _require_finite(tensors: Mapping[str, Tensor], who: str) -> None:
    """A diverged network is no start."""
    bad = {name: int((~tensor.isfinite()).sum()) for name, tensor in tensors.items() if tensor.is_floating_point()}
    bad = {name: count for name, count in bad.items() if count}
    if bad:
        raise UsageError(
            f"{who} has values that are not finite numbers, {sum(bad.values()):,} in {_few(bad)}: "
            "give weights from before the training diverged"
        )


def _said(
    match: Match, wanted: Mapping[str, Tensor], used: Mapping[str, Tensor], fresh: Collection[str], classes: int
) -> str:
    """What was loaded, from where in the file, and what was not."""
    parts = [f"{len(used)} of {len(wanted)} tensors loaded"]
    where = [f"key '{match.key}'"] if match.key else []
    where += [f"without prefix '{match.prefix}'"] if match.prefix else []
    if where:
        parts[0] += f" ({', '.join(where)})"
    kinds = Counter(_kind(t.dtype) for n, t in used.items() if t.is_floating_point() and t.dtype != wanted[n].dtype)
    if kinds:
        parts.append(f"{' and '.join(sorted(kinds))} cast to float32")
    if fresh:
        theirs = {_classes(match.tensors[name]) for name in fresh if name in match.tensors} - {classes}
        instead = f" instead of {min(theirs)}" if theirs else ""
        parts.append(f"{_few(sorted(fresh))} re-initialised for {classes} classes{instead}")
    unused = [name for name in match.spare if not name.endswith(COUNTER)]
    return "; ".join([*parts, f"{_few(unused)} not used"] if unused else parts)


def _kind(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _few(names: Iterable[str]) -> str:
    names = list(names)
    shown = ", ".join(f"'{name}'" for name in names[:2])
    return f"{shown} and {len(names) - 2} more" if len(names) > 2 else shown
