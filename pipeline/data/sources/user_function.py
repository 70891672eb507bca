"""`your_pkg.mod:factory`: data that the user's own function returns.

    def factory(seed: int):
        return train_images, train_labels, val_images, val_labels, class_names

Images are uint8 [N, C, H, W] with one channel (grey) or three (RGB), labels whole numbers [N] counted from 0; NumPy
arrays or tensors. Where the function takes them, it is given `seed`, `input_size` and `val_fraction`. What does not fit
in memory comes as an `atopipe.pipeline.data.dataset.Data` with its own ImageStore.
"""

from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import replace
from enum import Enum
from typing import TYPE_CHECKING

from atopipe.pipeline.data.source import DataSource, OnProgress, Request
from atopipe.pipeline.system.code_files import code_files
from atopipe.pipeline.system.errors import AtopipeError, DataError
from atopipe.pipeline.system.text import reason, written
from atopipe.pipeline.system.user_code import accepted, find_factory

if TYPE_CHECKING:
    from atopipe.pipeline.data.dataset import Data
    from atopipe.pipeline.data.sources.arrays import LabelledImages

RETURNS = "(train_images, train_labels, val_images, val_labels, class_names)"


def load(source: str, request: Request, on_progress: OnProgress | None = None) -> "Data":
    """What the function `source` returns; raises DataError."""
    from atopipe.pipeline.data.dataset import Data, Split

    who = f"data factory '{source}'"
    factory = find_factory(who, source, RETURNS, DataError)
    offers = {"seed": request.seed, "input_size": request.input_size, "val_fraction": request.val_fraction}
    args = accepted(factory, offers)
    try:
        result = factory(**args)
    except AtopipeError:  # it already says what is wrong
        raise
    except (Exception, SystemExit) as error:  # user code may raise anything
        raise DataError(f"{who} failed with {written(args)}: {reason(error)}") from error
    if not isinstance(result, Data):
        return _from_arrays(who, source, result, request)
    if not (isinstance(result.train, Split) and isinstance(result.val, Split)):
        raise DataError(f"{who} returned Data whose train or val is no Split: give both as Split")
    return replace(result, labels=_class_names(who, result.labels))


def _from_arrays(who: str, source: str, result: object, request: Request) -> "Data":
    from atopipe.pipeline.data.checks import check_class_names
    from atopipe.pipeline.data.sources.arrays import data_from_arrays

    if not isinstance(result, Sequence) or len(result) != 5:
        raise DataError(f"{who} returned {_kind(result)}: return {RETURNS}")
    classes = _class_names(who, result[4])
    check_class_names(who, classes)
    train = _part(f"{who}: the training", result[0], result[1], len(classes))
    val = _part(f"{who}: the validation", result[2], result[3], len(classes))
    sizes = [f"{part.pixels.shape[3]}x{part.pixels.shape[2]}" for part in (train, val)]
    if sizes[0] != sizes[1]:
        raise DataError(
            f"{who} has training images of {sizes[0]} pixels and validation images of {sizes[1]}: scale them alike"
        )
    count = len(train.labels) + len(val.labels)
    title, size, least_crop = f"{source}: {count:,} images", request.input_size, request.least_crop
    return data_from_arrays(source, title, classes, train, val, input_size=size, least_crop=least_crop)


def _class_names(who: str, given: object) -> tuple[str, ...]:
    """In the order of their numbers, which a dict must tell and a set cannot."""
    import numpy as np

    if isinstance(given, Mapping) and sorted(map(str, given)) == sorted(map(str, range(len(given)))):
        numbered = {int(number): name for number, name in given.items()}
        given = [numbered[number] for number in range(len(given))]
    if not isinstance(given, Iterable) or isinstance(given, (str, bytes, Mapping, AbstractSet)):
        raise DataError(
            f"{who} has class names in a {type(given).__name__}: give a list, in the order of their numbers"
        )
    names = [name.value if isinstance(name, Enum) else name for name in given]
    for name in names:
        if not isinstance(name, (str, int, np.integer)) or name is True or name is False:
            raise DataError(f"{who} has the class name {name!r}, a {type(name).__name__}: give strings")
    return tuple(map(str, names))


def _part(who: str, images: object, numbers: object, classes: int) -> "LabelledImages":
    import numpy as np

    from atopipe.pipeline.data.sources.arrays import LabelledImages

    try:
        pixels, labels = np.asarray(images), np.asarray(numbers)
    except (TypeError, ValueError, RuntimeError) as error:  # ragged lists, tensors on a GPU or with gradients
        raise DataError(f"{who} images or labels are not arrays: {reason(error)}") from error
    if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[1] not in (1, 3) or not pixels.size:
        raise DataError(f"{who} images are {_kind(pixels)}: give uint8 [N, C, H, W] with one channel or three")
    if not np.issubdtype(labels.dtype, np.integer) or labels.shape != pixels.shape[:1] or not labels.size:
        raise DataError(f"{who} labels are {_kind(labels)} for {len(pixels):,} images: give each image an integer")
    if labels.min() < 0 or labels.max() >= classes:
        raise DataError(f"{who} labels go from {labels.min()} to {labels.max()}: number the {classes} classes from 0")
    return LabelledImages(pixels, labels.astype(np.int64))


def _kind(value: object) -> str:
    import numpy as np

    if isinstance(value, np.ndarray):
        return f"{value.dtype} {list(value.shape)}"
    return f"a {type(value).__name__} of {len(value)}" if isinstance(value, Sequence) else type(value).__name__


SOURCE = DataSource("your_pkg.mod", load, "factory", files=code_files, reads="data code")
