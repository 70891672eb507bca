"""`imagefolder:PATH`: images in PATH/train/<class>/ and PATH/val/<class>/ or PATH/test/<class>/."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from atopipe.pipeline.data.source import DataSource, OnProgress, Request
from atopipe.pipeline.data.sources.file_list import ListedFiles
from atopipe.pipeline.data.sources.image_folder_layout import Files, described, find_splits, known_splits
from atopipe.pipeline.system.job import all_reduce_min
from atopipe.pipeline.system.machine import available_memory

if TYPE_CHECKING:
    from atopipe.pipeline.data.dataset import Data
    from atopipe.pipeline.data.preprocessing import Pixels, Preprocessing, Size
    from atopipe.pipeline.data.stores import ImageStore

DEFAULT_SIDE = 224
SAMPLE = 64  # images whose size is looked at
STATISTICS_SAMPLE = 2048  # images whose mean and deviation stand for a set that does not fit in memory


def load(argument: str, request: Request, on_progress: OnProgress | None = None) -> "Data":
    """The folder's images: decoded once into memory where they fit, else read from disk in every epoch.

    Mean and deviation are those of the training images as they are scaled for training; raises DataError.
    """
    import torch

    from atopipe.pipeline.data.augment import unchanged, usual_augmentation
    from atopipe.pipeline.data.dataset import Data, Split
    from atopipe.pipeline.data.preprocessing import resize_for

    root = Path(argument).expanduser()
    train, val = known_splits(root)
    size = (request.input_size, request.input_size) if request.input_size else _natural_size(train.paths)
    scaling = Scaling(size, request.resize or resize_for(size), request.interpolation)
    # Training images keep the margin of `resize`, from which random windows are cut.
    crops = ((train, scaling.resize), (val, size))
    fits = (
        sum(len(split.paths) * 3 * crop[0] * crop[1] for split, crop in crops) <= all_reduce_min(available_memory()) / 4
    )
    images, preprocessing = (_in_memory if fits else _on_disk)(crops, scaling, on_progress)
    augmentations = (usual_augmentation(size, request.least_crop), unchanged)
    splits = (
        Split(store, torch.frombuffer(bytearray(files.labels), dtype=torch.int64), preprocessing, augmentation)
        for store, files, augmentation in zip(images, (train, val), augmentations, strict=True)
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
    """How a photograph becomes pixels: scaled by `interpolation` to cover `resize`, cut to `size`."""

    size: "Size"
    resize: "Size"
    interpolation: str

    def with_statistics(self, pixels: "Pixels") -> "Preprocessing":
        """And normalised by the mean and deviation of these."""
        from atopipe.pipeline.data.preprocessing import Preprocessing, channel_statistics

        return Preprocessing(self.size, self.resize, *channel_statistics(pixels), interpolation=self.interpolation)


Crops = tuple[tuple[Files, "Size"], ...]
Loaded = tuple[list["ImageStore"], "Preprocessing"]


def _in_memory(crops: Crops, scaling: Scaling, on_progress: OnProgress | None) -> Loaded:
    import torch

    from atopipe.pipeline.data.stores import InMemory

    decoded = _decode(crops, scaling, on_progress)
    return [InMemory(torch.from_numpy(pixels)) for pixels in decoded], scaling.with_statistics(decoded[0])


def _on_disk(crops: Crops, scaling: Scaling, on_progress: OnProgress | None) -> Loaded:
    from atopipe.pipeline.data.decoding import read_all
    from atopipe.pipeline.data.stores import OnDisk

    sample = _spread(crops[0][0].paths, STATISTICS_SAMPLE)
    resize, how = scaling.resize, scaling.interpolation
    statistics = read_all(sample, resize, resize, on_progress, how)
    return [OnDisk(files.paths, resize, crop, how) for files, crop in crops], scaling.with_statistics(statistics)


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
