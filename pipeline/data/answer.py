"""What a source answered: recorded when a network is trained, so that another answer later is noticed; what is odd."""

import hashlib
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from math import sqrt
from typing import Any

from torch import Tensor

from atopipe.pipeline.data.checks import as_seen, sample_of
from atopipe.pipeline.data.dataset import Data, Split
from atopipe.pipeline.data.overlap import overlap
from atopipe.pipeline.data.preprocessing import CHUNK
from atopipe.pipeline.data.stores import InMemory
from atopipe.pipeline.system.errors import DataError

FEW = 50  # validation images
NAMED = 3  # classes
DARK = 32  # 12 bits in a file of 16, and zeros and ones, stay below


def answer(data: Data) -> dict[str, Any]:
    """Class names, sizes, and digests of labels and pixels: of all pixels in memory, else of a sample."""
    return {
        "class names": list(data.labels),
        "input size": list(data.preprocessing.size),
        **{f"training {name}": value for name, value in _of(data.train).items()},
        **{f"validation {name}": value for name, value in _of(data.val).items()},
    }


def _of(split: Split) -> dict[str, Any]:
    store = split.images
    pixels = store.pixels if isinstance(store, InMemory) else sample_of(split)
    return {"images": len(split), "labels": _digest(split.labels), "pixels": _digest(pixels)}


def _digest(tensor: Tensor) -> str:
    digest = hashlib.sha256()
    for start in range(0, len(tensor), CHUNK):  # what is not contiguous is copied part by part
        digest.update(tensor[start : start + CHUNK].numpy().tobytes())
    return digest.hexdigest()


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
    found = overlap(data)
    if found.shared:
        counts = f"{found.shared:,} of {found.validation:,}"
        yield f"{counts} validation images are training images too: accuracy is overestimated"
    if found.contradicted:
        counts = f"{found.contradicted:,} of {found.training:,}"
        yield f"{counts} training images looked at are there under another label as well: correct their labels"
    yield from _absent(data)
    yield from _alike(data.labels)
    if len(data.val) < FEW:
        images = f"{len(data.val):,} image{'s' if len(data.val) > 1 else ''}"
        yield f"validation has only {images}: accuracy is known to {98 / sqrt(len(data.val)):.0f} points at best"
    pixels = sample_of(data.train).flatten(1)
    brightest = int(pixels.max())
    if brightest < DARK:
        yield (
            f"no pixel of {len(pixels):,} training images looked at is brighter than {brightest} of 255: "
            "a device that gives the full range will be answered wrongly"
        )
    blank = int((pixels.amax(1) == pixels.amin(1)).sum())
    if blank:
        yield f"{blank:,} of {len(pixels):,} training images looked at are of a single colour"


def _alike(names: Sequence[str]) -> Iterator[str]:
    """Class names that differ only by case, or by forms of the same letters."""
    spelt: dict[str, list[str]] = {}
    for name in names:
        spelt.setdefault(unicodedata.normalize("NFKC", as_seen(name)).casefold(), []).append(name)
    several = [" and ".join(alike) for alike in spelt.values() if len(alike) > 1]
    if several:
        more = f", and {len(several) - NAMED:,} more," if len(several) > NAMED else ""
        shown = f"classes {', '.join(several[:NAMED])}{more}"
        yield f"{shown} differ by the case or form of letters only: are they the same?"


def _absent(data: Data) -> Iterator[str]:
    """Classes that are never trained, never validated, or neither."""
    train, val = (split.labels.bincount(minlength=len(data.labels)) for split in (data.train, data.val))
    for mine, others, kind, other in ((train, val, "training", "validation"), (val, train, "validation", "training")):
        missing = (mine == 0) & (others > 0)
        names = [name for name, is_missing in zip(data.labels, missing.tolist(), strict=True) if is_missing]
        if names:
            more = f" and {len(names) - NAMED:,} more" if len(names) > NAMED else ""
            images = int(others[missing].sum())
            yield f"no {kind} images of class {', '.join(names[:NAMED])}{more}, but {images:,} {other} images"
    empty = int(((train == 0) & (val == 0)).sum())
    if empty:
        yield f"{empty:,} of {len(data.labels):,} classes have no images"
