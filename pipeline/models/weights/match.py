"""Which tensors of a file are those of a network: under which key they lie, and which prefix their names carry."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

DEEPEST = 4  # levels of keys in a checkpoint, and of prefixes before the names of its tensors
# Where several fit, averaged weights go first: they are what training scripts evaluate, as timm takes them too.
AVERAGED = ("ema", "averaged", "teacher", "swa")
COUNTER = "num_batches_tracked"


@dataclass(frozen=True)
class Match:
    """Tensors of a checkpoint under the names of a network's.

    `tensors`: those whose name the network has, whatever their shape; `spare`: those it lacks; `key`: where they lay in
    the file; `prefix`: what stood before their names there; `fitting`: how many have the network's shape.
    """

    tensors: Mapping[str, Tensor]
    spare: Mapping[str, Tensor]
    key: str
    prefix: str
    fitting: int


def best_match(checkpoint: object, wanted: Mapping[str, Tensor]) -> Match | None:
    """The part of the checkpoint, and the prefix, by which most tensors fit; None where there are no tensors at all."""
    matches = [
        _matched(tensors, wanted, key, prefix, ours)
        for key, tensors in sorted(_parts(checkpoint), key=_rank)
        for prefix, ours in _prefixes(tensors, wanted)
    ]
    return max(matches, key=lambda match: (match.fitting, len(match.tensors)), default=None)


def _rank(part: tuple[str, Mapping[str, Tensor]]) -> tuple[bool, int]:
    key = part[0].lower()
    return not any(word in key for word in AVERAGED), key.count(".")


def _parts(value: object, key: str = "", depth: int = 0) -> Iterator[tuple[str, Mapping[str, Tensor]]]:
    """Every mapping from names to tensors in a checkpoint, with the keys that lead to it."""
    if isinstance(value, Mapping):
        tensors = {
            name: tensor
            for name, item in value.items()
            if isinstance(name, str) and (tensor := _tensor(item)) is not None
        }
        if tensors:
            yield key, tensors
        children: Iterable[tuple[object, object]] = value.items()
    else:
        children = enumerate(value) if isinstance(value, list | tuple) else ()
    if depth < DEEPEST:
        for name, child in children:
            if isinstance(child, Mapping | list | tuple):
                yield from _parts(child, f"{key}.{name}" if key else str(name), depth + 1)


def _tensor(value: object) -> Tensor | None:
    """A tensor, also where the file holds it as a NumPy array of numbers."""
    import numpy as np

    if isinstance(value, np.ndarray) and value.dtype.kind in "fiu":
        return torch.from_numpy(np.array(value))
    return value.detach() if isinstance(value, Tensor) and value.layout == torch.strided else None


def _prefixes(tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> Iterator[tuple[str, str]]:
    """What may stand before the names in the file, or before the network's: one of the two is empty."""
    yield "", ""
    yield from ((prefix, "") for prefix in _starts(tensors))
    yield from (("", prefix) for prefix in _starts(wanted))


def _starts(names: Iterable[str]) -> list[str]:
    found: dict[str, None] = {}
    for name in names:
        parts = name.split(".")[:-1]
        found.update(dict.fromkeys(f"{'.'.join(parts[: count + 1])}." for count in range(min(len(parts), DEEPEST))))
    return list(found)


def _matched(tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor], key: str, theirs: str, ours: str) -> Match:
    named = {ours + name.removeprefix(theirs): t for name, t in tensors.items() if name.startswith(theirs)}
    known = {name: tensor for name, tensor in named.items() if name in wanted}
    spare = {name: t for name, t in tensors.items() if ours + name.removeprefix(theirs) not in known}
    fitting = sum(t.shape == wanted[name].shape for name, t in known.items() if not name.endswith(COUNTER))
    return Match(known, spare, key, theirs, fitting)
