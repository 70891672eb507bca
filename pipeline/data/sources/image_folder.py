"""`imagefolder:PATH`: images in PATH/train/<class>/ and PATH/val/<class>/ or PATH/test/<class>/."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from atopipe.pipeline.data.source import DEFAULT_SIDE, STATISTICS_SAMPLE, DataSource, OnProgress, Request
from atopipe.pipeline.data.sources.file_list import ListedFiles
from atopipe.pipeline.data.sources.image_folder_layout import Files, described, find_splits, known_splits
from atopipe.pipeline.system.job import all_reduce_min
from atopipe.pipeline.system.machine import available_memory

if TYPE_CHECKING:
    from atopipe.pipeline.data.augment import Augmentation
    from atopipe.pipeline.data.dataset import Data
    from atopipe.pipeline.data.photographs.encoded import EncodedFiles
    from atopipe.pipeline.data.photographs.windows import RandomWindows
    from atopipe.pipeline.data.preprocessing import Pixels, Preprocessing, Size
    from atopipe.pipeline.data.stores import ImageStore

SAMPLE = 64  # images whose size is looked at


def load(argument: str, request: Request, on_progress: OnProgress | None = None) -> "Data":
    """The folder's images. Raises DataError.

    Small ones are decoded once where they fit in memory. Photographs are decoded when they are used, training ones by
    random windows of the whole picture; validation images are kept decoded where they fit. Mean and deviation are
    those of the training images as they are scaled for validation, of photographs of a sample.
    """
    import torch

    from atopipe.pipeline.data.augment import unchanged
    from atopipe.pipeline.data.dataset import Data, Split
    from atopipe.pipeline.data.preprocessing import SMALL, resize_for

    root = Path(argument).expanduser()
    train, val = known_splits(root)
    size = (request.input_size, request.input_size) if request.input_size else _natural_size(train.paths)
    scaling = Scaling(size, request.resize or resize_for(size), request.interpolation, request.least_crop)
    make = _small if max(size) <= SMALL else _photographs
    images, preprocessing, augmentation = make(train, val, scaling, on_progress)
    splits = (
        Split(store, torch.frombuffer(bytearray(files.labels), dtype=torch.int64), preprocessing, augment)
        for store, files, augment in zip(images, (train, val), (augmentation, unchanged), strict=True)
    )
    return Data("imagefolder", _description(root, train, val, size), train.classes, preprocessing, *splits)


def files(argument: str) -> Mapping[str, Path]:
    """The images that `load` reads; none where the folder is not there. Raises DataError where it would be refused."""
    root = Path(argument).expanduser()
    if not root.is_dir():
        return {}
    return ListedFiles(root, {split.paths.root.name: split.paths for split in find_splits(root)})


def _description(root: Path, train: Files, val: Files, size: "Size") -> str:
    unused = Counter(train.unused) + Counter(val.unused)
    return (
        f"imagefolder '{root}': {len(train.paths):,} images for training and {len(val.paths):,} for validation, "
        f"{len(train.classes):,} classes, {size[1]}x{size[0]} pixels"
    ) + (f"; not used: {described(unused)}" if unused else "")


@dataclass(frozen=True)
class Scaling:
    """How a photograph becomes pixels: scaled by `interpolation` to cover `resize`, cut to `size`.

    `least_crop`: the least share of its area that a random part of it has in training; None: as its size suggests.
    """

    size: "Size"
    resize: "Size"
    interpolation: str
    least_crop: float | None

    def with_statistics(self, pixels: "Pixels") -> "Preprocessing":
        """And normalised by the mean and deviation of these."""
        from atopipe.pipeline.data.preprocessing import Preprocessing, channel_statistics

        return Preprocessing(self.size, self.resize, *channel_statistics(pixels), interpolation=self.interpolation)


Crops = tuple[tuple[Files, "Size"], ...]
Loaded = tuple[list["ImageStore"], "Preprocessing", "Augmentation | RandomWindows"]


def _small(train: Files, val: Files, scaling: Scaling, on_progress: OnProgress | None) -> Loaded:
    from atopipe.pipeline.data.augment import usual_augmentation

    # Training images keep the margin of `resize`, if there is one, from which random windows are cut.
    crops = ((train, scaling.resize), (val, scaling.size))
    augmentation = usual_augmentation(scaling.size, scaling.least_crop)
    if _fit(crops):
        decoded = _decode(crops, scaling, on_progress)
        stores = [_kept(pixels, files) for pixels, (files, _) in zip(decoded, crops, strict=True)]
        return stores, scaling.with_statistics(decoded[0]), augmentation
    stores = [_encoded(files, scaling, crop) for files, crop in crops]
    return stores, _sample_statistics(train, scaling, on_progress), augmentation


def _photographs(train: Files, val: Files, scaling: Scaling, on_progress: OnProgress | None) -> Loaded:
    from atopipe.pipeline.data.photographs.windows import RandomWindows

    size, held_out = scaling.size, ((val, scaling.size),)
    preprocessing = _sample_statistics(train, scaling, on_progress)
    kept = [_kept(pixels, val) for pixels in _decode(held_out, scaling, on_progress)] if _fit(held_out) else []
    stores = [_encoded(train, scaling, size), *(kept or [_encoded(val, scaling, size)])]
    return stores, preprocessing, RandomWindows.at_least(scaling.least_crop, size)


def _fit(crops: Crops) -> bool:
    """Whether all these images take no more than a quarter of the memory that is free, in every process of the job."""
    needed = sum(len(files.paths) * 3 * crop[0] * crop[1] for files, crop in crops)
    return needed <= all_reduce_min(available_memory()) / 4


def _kept(pixels: "Pixels", files: Files) -> "ImageStore":
    import torch

    from atopipe.pipeline.data.stores import InMemory

    return InMemory(torch.from_numpy(pixels), _as_encoded(files))


def _encoded(files: Files, scaling: Scaling, crop: "Size") -> "ImageStore":
    from atopipe.pipeline.data.photographs.store import Photographs

    return Photographs(_as_encoded(files), scaling.resize, crop, scaling.interpolation)


def _as_encoded(files: Files) -> "EncodedFiles":
    import numpy as np

    from atopipe.pipeline.data.photographs.encoded import EncodedFiles

    return EncodedFiles(files.paths, np.frombuffer(files.paths.sizes, np.int64))


def _sample_statistics(train: Files, scaling: Scaling, on_progress: OnProgress | None) -> "Preprocessing":
    from atopipe.pipeline.data.decoding import read_all

    sample, resize = _spread(train.paths, STATISTICS_SAMPLE), scaling.resize
    return scaling.with_statistics(read_all(sample, resize, resize, on_progress, scaling.interpolation))


def _decode(crops: Crops, scaling: Scaling, on_progress: OnProgress | None) -> "list[Pixels]":
    from atopipe.pipeline.data.decoding import read_all

    total = sum(len(files.paths) for files, _ in crops)
    decoded: list[Pixels] = []

    def report(done: int, _: int) -> None:
        if on_progress is not None:
            on_progress(sum(map(len, decoded)) + done, total)

    for split, crop in crops:
        decoded.append(read_all(split.paths, scaling.resize, crop, report, scaling.interpolation))
    return decoded


def _natural_size(paths: Sequence[Path]) -> "Size":
    """The size of the images if a sample has one and it is small, else 224x224."""
    from atopipe.pipeline.data.decoding import read_size
    from atopipe.pipeline.data.preprocessing import SMALL

    sizes = {read_size(path) for path in _spread(paths, SAMPLE)}
    size = sizes.pop()
    return size if not sizes and max(size) <= SMALL else (DEFAULT_SIDE, DEFAULT_SIDE)


def _spread(paths: Sequence[Path], count: int) -> list[Path]:
    """At most `count` paths, evenly spread: the files are sorted by class."""
    import numpy as np

    return [paths[index] for index in np.linspace(0, len(paths) - 1, min(count, len(paths))).astype(int).tolist()]


SOURCE = DataSource("imagefolder", load, "PATH", libraries=("pillow",), files=files)
