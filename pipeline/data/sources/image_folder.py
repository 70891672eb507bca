"""`imagefolder:PATH`: images in PATH/train/<class>/ and PATH/val/<class>/ or PATH/test/<class>/."""

from pathlib import Path

import numpy as np
import torch

from atopipe.pipeline.data.augment import plain, usual_augmentation
from atopipe.pipeline.data.dataset import Data, Request, Split
from atopipe.pipeline.data.decoding import OnProgress, read_all, read_size
from atopipe.pipeline.data.preprocessing import SMALL, Pixels, Preprocessing, Size, channel_statistics, resize_for
from atopipe.pipeline.data.sources.image_folder_layout import Files, find_splits
from atopipe.pipeline.data.stores import ImageStore, InMemory, OnDisk
from atopipe.pipeline.system.job import least
from atopipe.pipeline.system.machine import available_memory

DEFAULT_SIDE = 224
SAMPLE = 64  # images whose size is looked at
STATISTICS_SAMPLE = 2048  # images whose mean and deviation stand for a set that does not fit in memory


def load(argument: str, request: Request, on_progress: OnProgress | None = None) -> Data:
    """The folder's images: decoded once into memory where they fit, else read from disk in every epoch.

    Mean and deviation are those of the training images as they are scaled for training; raises DataError.
    """
    root = Path(argument).expanduser()
    train, val = find_splits(root)
    size = (request.input_size, request.input_size) if request.input_size else _natural_size(train.paths)
    resize = resize_for(size)
    # Training images keep the margin of `resize`, from which random windows are cut.
    crops = ((train, resize), (val, size))
    images: list[ImageStore]
    if sum(len(files.paths) * 3 * crop[0] * crop[1] for files, crop in crops) <= least(available_memory()) / 4:
        decoded = _decode(crops, resize, on_progress)
        statistics = channel_statistics(decoded[0])
        images = [InMemory(torch.from_numpy(pixels)) for pixels in decoded]
    else:
        sample = _spread(train.paths, STATISTICS_SAMPLE)
        statistics = channel_statistics(read_all(sample, resize, resize, on_progress))
        images = [OnDisk(files.paths, resize, crop) for files, crop in crops]
    preprocessing = Preprocessing(size, resize, *statistics)
    description = (
        f"imagefolder '{root}': {len(train.paths):,} images for training and {len(val.paths):,} for validation, "
        f"{len(train.classes):,} classes, {size[1]}x{size[0]} pixels"
    )
    splits = (
        Split(store, torch.tensor(files.labels), preprocessing, augmentation)
        for store, files, augmentation in zip(images, (train, val), (usual_augmentation(size), plain), strict=True)
    )
    return Data("imagefolder", description, train.classes, preprocessing, *splits)


def _decode(crops: tuple[tuple[Files, Size], ...], resize: Size, on_progress: OnProgress | None) -> list[Pixels]:
    total = sum(len(files.paths) for files, _ in crops)
    decoded: list[Pixels] = []

    def report(done: int, _: int) -> None:
        if on_progress is not None:
            on_progress(sum(map(len, decoded)) + done, total)

    for files, crop in crops:
        decoded.append(read_all(files.paths, resize, crop, report))
    return decoded


def _natural_size(paths: tuple[Path, ...]) -> Size:
    """The size of the images if a sample has one and it is small, else 224x224."""
    sizes = {read_size(path) for path in _spread(paths, SAMPLE)}
    size = sizes.pop()
    return size if not sizes and max(size) <= SMALL else (DEFAULT_SIDE, DEFAULT_SIDE)


def _spread(paths: tuple[Path, ...], count: int) -> tuple[Path, ...]:
    """At most `count` paths, evenly spread: the files are sorted by class."""
    return tuple(paths[i] for i in np.linspace(0, len(paths) - 1, min(count, len(paths))).astype(int))
