"""What a source answered: recorded when a network is trained, so that another answer later is noticed; what is odd."""

import hashlib
from collections.abc import Iterator, Mapping
from math import sqrt
from typing import Any

import torch

from atopipe.pipeline.data.checks import sample_of
from atopipe.pipeline.data.dataset import Data, Split
from atopipe.pipeline.data.overlap import overlap
from atopipe.pipeline.data.preprocessing import CHUNK
from atopipe.pipeline.data.stores import InMemory
from atopipe.pipeline.system.errors import DataError

FEW = 50  # validation images
NAMED = 3  # classes


def answer(data: Data) -> dict[str, Any]:
    """Class names, sizes, and digests of labels and pixels: of all pixels in memory, else of a sample."""
    return {
        "class names": list(data.labels),
        "input size": list(data.preprocessing.size),
        **{f"training {name}": value for name, value in _of(data.train).items()},
        **{f"validation {name}": value for name, value in _of(data.val).items()},
    }


def _of(split: Split) -> dict[str, Any]:
    digest = hashlib.sha256()
    store = split.images
    for pixels in store.pixels.split(CHUNK) if isinstance(store, InMemory) else [sample_of(split)]:
        digest.update(pixels.contiguous().numpy())
    labels = hashlib.sha256(split.labels.contiguous().numpy()).hexdigest()
    return {"images": len(split), "labels": labels, "pixels": digest.hexdigest()}


def require_same(source: str, recorded: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    """Raises DataError, which says what differs, unless a source answers as it did when the network was trained."""
    other = [name for name, value in recorded.items() if found.get(name) != value]
    if other:
        remedy = "let it give the same each time (a set has no order, a random number needs the seed)"
        raise DataError(
            f"data '{source}' gives other {other[0]} than the network was trained with: {remedy}, "
            "or train again with --from train"
        )


def remarks(data: Data) -> list[str]:
    """What makes the figures of a run doubtful, with counts, a sentence each; empty where nothing does."""
    return list(_remarks(data))


def _remarks(data: Data) -> Iterator[str]:
    both, looked_at = overlap(data)
    if both:
        yield f"{both:,} of {looked_at:,} validation images are training images too: accuracy is overestimated"
    counts = [split.labels.bincount(minlength=len(data.labels)) for split in (data.train, data.val)]
    for one, other, words in ((0, 1, "has no training images"), (1, 0, "has no validation images")):
        absent = [data.labels[i] for i in torch.flatnonzero((counts[one] == 0) & (counts[other] > 0)).tolist()]
        if absent:
            extra = f" and {len(absent) - NAMED:,} more" if len(absent) > NAMED else ""
            images = int(counts[other][counts[one] == 0].sum())
            kind = "validation" if other else "training"
            named = ", ".join(absent[:NAMED])
            yield f"class {named}{extra} {words}, but {images:,} {kind} images"
    empty = int(((counts[0] == 0) & (counts[1] == 0)).sum())
    if empty:
        yield f"{empty:,} of {len(data.labels):,} classes have no images"
    if len(data.val) < FEW:
        images = f"{len(data.val):,} image{'s' if len(data.val) > 1 else ''}"
        yield f"validation has only {images}: accuracy is known to {98 / sqrt(len(data.val)):.0f} points at best"
    pixels = sample_of(data.train).flatten(1)
    blank = int((pixels.amax(1) == pixels.amin(1)).sum())
    if blank:
        yield f"{blank:,} of {len(pixels):,} training images looked at are of a single colour"
