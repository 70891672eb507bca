"""`webdataset:DIR`: shards DIR/train-*.tar and DIR/val-*.tar, as WebDataset has them, and names in DIR/classes.txt."""

from array import array
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from atopipe.pipeline.data.photographs.shards import Index, read_index, require_all
from atopipe.pipeline.data.source import DEFAULT_SIDE, STATISTICS_SAMPLE, DataSource, FileState, OnProgress, Request
from atopipe.pipeline.data.sources.file_list import FileList, Found, ListedFiles
from atopipe.pipeline.system.errors import DataError, MissingDataError

if TYPE_CHECKING:
    from atopipe.pipeline.data.dataset import Data
    from atopipe.pipeline.data.preprocessing import Preprocessing

CLASSES = "classes.txt"
PARTS = ("train", "val")


def load(argument: str, request: Request, on_progress: OnProgress | None = None) -> "Data":
    """The pictures of the shards, decoded when they are used; training ones by windows. Raises DataError."""
    import torch

    from atopipe.pipeline.data.dataset import Data, Split
    from atopipe.pipeline.data.photographs.store import Photographs
    from atopipe.pipeline.data.photographs.windows import RandomWindows

    folder = Path(argument).expanduser()
    shards = [_shards(folder, part) for part in PARTS]
    indices = [read_index(files) for files in shards]
    names, size = _classes(folder, indices), (request.input_size or DEFAULT_SIDE,) * 2
    preprocessing = _preprocessing(indices[0], shards[0], request, size)
    stores = [
        Photographs(index.encoded(files), preprocessing.resize, size, request.interpolation)
        for index, files in zip(indices, shards, strict=True)
    ]
    labels = [torch.frombuffer(index.label, dtype=torch.int64) for index in indices]
    splits = (
        Split(stores[0], labels[0], preprocessing, RandomWindows.at_least(request.least_crop, size)),
        Split(stores[1], labels[1], preprocessing),
    )
    train, val = (len(index.label) for index in indices)
    counts = f"{train:,} images for training and {val:,} for validation, {len(names):,} classes"
    description = f"webdataset '{folder}': {counts}, {size[1]}x{size[0]} pixels"
    return Data("webdataset", description, names, preprocessing, *splits)


def files(argument: str) -> Mapping[str, Path]:
    """The shards; none where the folder is not there."""
    folder = Path(argument).expanduser()
    if not folder.is_dir():
        return {}
    listed = FileList(folder)
    paths = [*(path for part in PARTS for path in _shards(folder, part)), *folder.glob(CLASSES)]
    states = [FileState(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in paths]
    names, sizes, times = zip(*states, strict=True)
    listed.add(Found(names, array("q", sizes), array("q", times)))
    return ListedFiles(folder.parent, {folder.name: listed})


def _shards(folder: Path, part: str) -> list[Path]:
    found = sorted(folder.glob(f"{part}*.tar"))
    if not found:
        raise MissingDataError(
            f"data folder '{folder}' has no {part}-000000.tar: give a folder with shards of both parts"
        )
    require_all(found, folder, part)
    return found


def _classes(folder: Path, indices: Sequence[Index]) -> tuple[str, ...]:
    """The names in classes.txt, a line each; the numbers where there is no such file."""
    highest = max((max(index.label, default=0) for index in indices), default=0)
    if not (folder / CLASSES).is_file():
        return tuple(map(str, range(highest + 1)))
    names = tuple((folder / CLASSES).read_text(encoding="utf-8").splitlines())
    if highest >= len(names):
        raise DataError(f"'{folder}' has shards with the class number {highest}, but {len(names)} names in {CLASSES}")
    return names


def _preprocessing(index: Index, shards: Sequence[Path], request: Request, size: tuple[int, int]) -> "Preprocessing":
    """Normalised by mean and deviation of a sample, as it is scaled for validation."""
    import numpy as np
    import torch

    from atopipe.pipeline.data.photographs.store import Photographs
    from atopipe.pipeline.data.preprocessing import Preprocessing, channel_statistics, resize_for

    if not len(index.label):
        raise DataError(f"'{shards[0].parent}' has shards without images: put KEY.jpg and KEY.cls in them")
    resize, count = request.resize or resize_for(size), len(index.label)
    chosen = np.linspace(0, count - 1, min(STATISTICS_SAMPLE, count)).astype(int)
    sample = Photographs(index.encoded(shards), resize, resize, request.interpolation)
    pixels = next(iter(sample.read([torch.from_numpy(chosen)], torch.device("cpu")))).numpy()
    return Preprocessing(size, resize, *channel_statistics(pixels), interpolation=request.interpolation)


SOURCE = DataSource("webdataset", load, "DIR", libraries=("pillow", "torchvision"), files=files)
