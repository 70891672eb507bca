"""What every data set must be, whatever source it comes from: asked once, when it is loaded."""

import math
import unicodedata
from collections.abc import Iterator

import torch
from PIL import Image
from torch import Tensor

from atopipe.pipeline.data.dataset import Data, Split
from atopipe.pipeline.data.stores import InMemory
from atopipe.pipeline.system.errors import AtopipeError, DataError
from atopipe.pipeline.system.text import reason

CHANNELS = 3
SAMPLE = 64  # images of each part that are looked at
SPELLING = "\u200c\u200d\ufe0e\ufe0f"  # joiners and selectors: invisible, but part of spelling and of emoji
BLANK = "\u2800\U0001d159"  # symbols that show nothing
HIDDEN_KINDS = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
IGNORABLE = (  # beside those of these kinds; DerivedCoreProperties.txt of Unicode 16
    (0x034F, 0x034F),
    (0x115F, 0x1160),
    (0x17B4, 0x17B5),
    (0x180B, 0x180F),
    (0x2060, 0x206F),
    (0x3164, 0x3164),
    (0xFE00, 0xFE0F),
    (0xFFA0, 0xFFA0),
    (0xFFF0, 0xFFF8),
    (0xE0000, 0xE0FFF),
)


def checked(who: str, data: Data) -> Data:
    """The data set, if it can be trained on and its class names survive in files; DataError, which names `who`, if not.

    Looked at are the class names, all labels, and the pixels of a sample.
    """
    check_class_names(who, data.labels)
    _check_preprocessing(who, data)
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
        hidden = next(_hidden(name), None)
        seen_as = as_seen(name)
        if hidden is not None or not seen_as:
            what = f"the invisible character U+{ord(hidden):04X}" if hidden else "nothing to read"
            raise DataError(f"{who} has the class name {name!a} with {what}: rename the class")
        if seen_as in seen:
            raise DataError(f"{who} has two classes named {seen_as!r}: give each a different name")
        seen.add(seen_as)


def as_seen(name: str) -> str:
    """The name in one spelling of its letters, without what nobody sees: how wide a space is, joiners, selectors."""
    shown = "".join(" " if c in BLANK else c for c in name if c not in SPELLING)
    return " ".join(unicodedata.normalize("NFC", shown).split())


def _hidden(name: str) -> Iterator[str]:
    """Characters that break or turn a line, show nothing, or have no place in UTF-8 or XML.

    Controls, formats, separators, surrogates, Unicode's Default_Ignorable_Code_Point, and noncharacters.
    """
    for character in name:
        code, kind = ord(character), unicodedata.category(character)
        ignorable = any(first <= code <= last for first, last in IGNORABLE)
        nonsense = code & 0xFFFE == 0xFFFE or 0xFDD0 <= code <= 0xFDEF
        if (kind in HIDDEN_KINDS or ignorable or nonsense) and character not in SPELLING:
            yield character


def _check_preprocessing(who: str, data: Data) -> None:
    """Raises DataError unless a device that does as `data.preprocessing` says does what was done in training."""
    settings = data.preprocessing
    if any(split.preprocessing != settings for split in (data.train, data.val)):
        raise DataError(f"{who} has a split with another preprocessing than its own: give one Preprocessing to all")
    numbers = (*settings.mean, *settings.std)
    per_channel = len(settings.mean) == len(settings.std) == settings.channels == CHANNELS
    if not per_channel or not all(map(math.isfinite, numbers)) or min(settings.std) <= 0:
        have = f"mean {settings.mean} and std {settings.std} for {settings.channels} channels"
        raise DataError(f"{who} has {have}: give three finite numbers of each, and no std of 0")
    if settings.interpolation.upper() not in Image.Resampling.__members__:
        kinds = ", ".join(name.lower() for name in Image.Resampling.__members__)
        raise DataError(f"{who} has the interpolation '{settings.interpolation}': choose one of {kinds}")


def _check_labels(who: str, split: Split, classes: int) -> None:
    labels = split.labels
    if labels.dtype != torch.int64 or labels.ndim != 1 or not len(labels):
        raise DataError(f"{who} {labels.dtype} {list(labels.shape)}: give int64 [N], one for each image")
    if labels.min() < 0 or labels.max() >= classes:
        raise DataError(f"{who} from {int(labels.min())} to {int(labels.max())}: number the {classes} classes from 0")


def _check_pixels(who: str, split: Split) -> None:
    try:
        pixels = sample_of(split)
    except (AtopipeError, MemoryError):
        raise
    except Exception as error:  # a store of the user's may raise anything
        raise DataError(f"{who} that cannot be read: {reason(error)}") from error
    high, wide = split.preprocessing.size
    if pixels.dtype != torch.uint8 or pixels.ndim != 4 or pixels.shape[1] != CHANNELS:
        raise DataError(f"{who} of {pixels.dtype} {list(pixels.shape)}: give uint8 [N, 3, H, W]")
    stored = len(split.images.pixels) if isinstance(split.images, InMemory) else len(split)
    if stored != len(split) or len(pixels) != min(SAMPLE, len(split)):
        found = stored if stored != len(split) else len(pixels)
        raise DataError(f"{who} and labels of other numbers: {found} for {len(split)}: give each label its image")
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
