"""What every data set must be, whatever source it comes from: asked once, when it is loaded."""

import unicodedata
from collections.abc import Iterator

import torch
from torch import Tensor

from atopipe.pipeline.data.dataset import Data, Split
from atopipe.pipeline.system.errors import DataError

SAMPLE = 64  # images of each part that are looked at
JOINERS = "\u200c\u200d"  # invisible, but part of the spelling of names and of emoji


def checked(who: str, data: Data) -> Data:
    """The data set, if it can be trained on and its class names survive in files; DataError, which names `who`, if not.

    Looked at are the class names, all labels, and the pixels of a sample.
    """
    check_class_names(who, data.labels)
    for part, split in (("training", data.train), ("validation", data.val)):
        _check_labels(f"{who} has {part} labels", split, len(data.labels))
        _check_pixels(f"{who} has {part} images", split)
    if data.train.labels.min() == data.train.labels.max():
        only = data.labels[int(data.train.labels[0])]
        raise DataError(f"{who} has training images of the class {only} only: a classifier needs two or more")
    return data


def check_class_names(who: str, names: tuple[str, ...]) -> None:
    """Raises DataError unless there are two or more, all different, each of which is one line in any file."""
    if len(names) < 2:
        raise DataError(f"{who} has the class names {list(names)}: a classifier needs two or more")
    seen: set[str] = set()
    for name in names:
        invisible = next(_invisible(name), None)
        if invisible is not None or not name.strip():
            what = f"the invisible character U+{ord(invisible):04X}" if invisible else "nothing to read"
            raise DataError(f"{who} has the class name {name!a} with {what}: rename the class")
        composed = unicodedata.normalize("NFC", name)
        if composed in seen:
            raise DataError(f"{who} has two classes named {composed!r}: give each a different name")
        seen.add(composed)


def _invisible(name: str) -> Iterator[str]:
    """Characters that break or turn a line, or have no place in UTF-8: controls, formats, separators, surrogates."""
    kinds = {"Cc", "Cf", "Cs", "Zl", "Zp"}
    return (character for character in name if unicodedata.category(character) in kinds and character not in JOINERS)


def _check_labels(who: str, split: Split, classes: int) -> None:
    labels = split.labels
    if labels.dtype != torch.int64 or labels.ndim != 1 or not len(labels):
        raise DataError(f"{who} {labels.dtype} {list(labels.shape)}: give int64 [N], one for each image")
    if labels.min() < 0 or labels.max() >= classes:
        raise DataError(f"{who} from {int(labels.min())} to {int(labels.max())}: number the {classes} classes from 0")


def _check_pixels(who: str, split: Split) -> None:
    pixels = sample_of(split)
    high, wide = split.preprocessing.size
    if pixels.dtype != torch.uint8 or pixels.ndim != 4 or pixels.shape[1] != 3:
        raise DataError(f"{who} of {pixels.dtype} {list(pixels.shape)}: give uint8 [N, 3, H, W]")
    if pixels.shape[2] < high or pixels.shape[3] < wide:
        smaller = f"{pixels.shape[3]}x{pixels.shape[2]} pixels, smaller than the input of {wide}x{high}"
        raise DataError(f"{who} of {smaller}: scale them to it or more")
    if len(split) > 1 and bool((pixels == pixels[:1, :, :1, :1]).all()):
        colour = tuple(pixels[0, :, 0, 0].tolist())
        raise DataError(f"{who} of one colour only, RGB {colour}: check how they were made")


def sample_of(split: Split) -> Tensor:
    """The pixels of at most `SAMPLE` images, evenly spread: uint8 [N, C, H, W]."""
    chosen = torch.linspace(0, len(split) - 1, min(SAMPLE, len(split))).round().long()
    return next(iter(split.images.read([chosen], torch.device("cpu"))))
