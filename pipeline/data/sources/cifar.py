"""`cifar10:DIR`, `cifar100:DIR`: the binary version of the official archives, as it was fetched or unpacked.

A file is a row of records: the label in one byte (CIFAR-100: the coarse label before it), then the red, green and blue
values of 32x32 pixels. The archives are read where they are: nothing is written to the disk.
"""

import gzip
import tarfile
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING, cast

from atopipe.pipeline.data.source import DataSource, OnProgress, Request
from atopipe.pipeline.system.errors import DataError, MissingDataError
from atopipe.pipeline.system.machine import require_memory

if TYPE_CHECKING:
    from atopipe.pipeline.data.dataset import Data
    from atopipe.pipeline.data.sources.arrays import LabelledImages

HOME = "https://www.cs.toronto.edu/~kriz/cifar.html"
SIDE = 32
LONGEST_NAMES = 100_000  # bytes; the real lists of names have less than 2,000
CHUNK = 2**20
LONGEST_ARCHIVE = 2**28  # bytes unpacked; the real ones have 185 million


@dataclass(frozen=True)
class Edition:
    """One of the two data sets: `train` and `val` map its files to their number of images."""

    name: str
    title: str
    archive: str
    folder: str
    train: Mapping[str, int]
    val: Mapping[str, int]
    names: str
    classes: int
    label_bytes: int
    pickled: tuple[str, ...]

    @property
    def files(self) -> Mapping[str, int]:
        return {**self.train, **self.val}

    @property
    def record(self) -> int:
        """Bytes per image."""
        return self.label_bytes + 3 * SIDE * SIDE

    @property
    def remedy(self) -> str:
        return f"fetch {self.archive} from {HOME}"


CIFAR10 = Edition(
    name="cifar10",
    title="CIFAR-10",
    archive="cifar-10-binary.tar.gz",
    folder="cifar-10-batches-bin",
    train={f"data_batch_{number}.bin": 10_000 for number in range(1, 6)},
    val={"test_batch.bin": 10_000},
    names="batches.meta.txt",
    classes=10,
    label_bytes=1,
    pickled=("cifar-10-python.tar.gz", "cifar-10-batches-py", "data_batch_1"),
)
CIFAR100 = Edition(
    name="cifar100",
    title="CIFAR-100",
    archive="cifar-100-binary.tar.gz",
    folder="cifar-100-binary",
    train={"train.bin": 50_000},
    val={"test.bin": 10_000},
    names="fine_label_names.txt",
    classes=100,
    label_bytes=2,
    pickled=("cifar-100-python.tar.gz", "cifar-100-python", "meta"),
)


def load(edition: Edition, argument: str, request: Request, on_progress: OnProgress | None = None) -> "Data":
    """The photographs, split as published; `argument` is a folder, or the archive itself. Raises DataError."""
    from atopipe.pipeline.data.sources.arrays import data_from_arrays

    root = Path(argument).expanduser()
    count = sum(edition.files.values())
    require_memory(f"the images of {edition.title}", 2 * count * edition.record, "free some")  # as read, and as used
    contents = _contents(edition, root)
    names = tuple(contents[edition.names].decode("ascii", "replace").split())
    if len(names) != edition.classes:
        raise DataError(
            f"'{root}' names {len(names)} classes of {edition.classes} in {edition.names}: {edition.remedy}"
        )
    train, val = (_images(edition, contents, files) for files in (edition.train, edition.val))
    title = f"{edition.name} '{root}': {count:,} photographs"
    size, least_crop = request.input_size, request.least_crop
    return data_from_arrays(edition.name, title, names, train, val, input_size=size, least_crop=least_crop)


def _images(edition: Edition, contents: Mapping[str, bytes], files: Iterable[str]) -> "LabelledImages":
    import numpy as np

    from atopipe.pipeline.data.sources.arrays import LabelledImages

    records = [np.frombuffer(contents[name], np.uint8).reshape(-1, edition.record) for name in files]
    labels = np.concatenate([part[:, edition.label_bytes - 1] for part in records]).astype(np.int64)
    if labels.max() >= edition.classes:
        raise DataError(
            f"{edition.title} has a label {labels.max()}, beyond its {edition.classes} classes: {edition.remedy}"
        )
    pixels = np.concatenate([part[:, edition.label_bytes :] for part in records])
    return LabelledImages(pixels.reshape(-1, 3, SIDE, SIDE), labels)


def _contents(edition: Edition, root: Path) -> Mapping[str, bytes]:
    """The files that are needed, complete, from wherever they are."""
    folder = next((f for f in (root, root / edition.folder) if (f / next(iter(edition.train))).is_file()), None)
    archive = root if root.is_file() else root / edition.archive
    if folder is not None:
        place, contents = folder, _from_folder(edition, folder)
    elif archive.is_file():
        place, contents = archive, _from_archive(edition, archive)
    else:
        raise _missing(edition, root)
    absent = [name for name in (*edition.files, edition.names) if name not in contents]
    if absent:
        raise DataError(
            f"'{place}' is not the binary version of {edition.title}, it lacks {absent[0]}: {edition.remedy}"
        )
    return contents


def _from_folder(edition: Edition, folder: Path) -> Mapping[str, bytes]:
    paths = [folder / name for name in (*edition.files, edition.names) if (folder / name).is_file()]
    for path in paths:
        _check_size(edition, path.name, path.stat().st_size, folder)
    return {path.name: path.read_bytes() for path in paths}


def _from_archive(edition: Edition, archive: Path) -> Mapping[str, bytes]:
    wanted = (*edition.files, edition.names)
    contents: dict[str, bytes] = {}
    try:
        with gzip.open(archive) as unpacked, tarfile.open(fileobj=_bounded(unpacked, edition), mode="r:") as tar:
            for member in tar:
                name = PurePosixPath(member.name).name
                content = tar.extractfile(member) if member.isfile() and name in wanted else None
                if content is not None:
                    _check_size(edition, name, member.size, archive)
                    contents[name] = content.read()
            while unpacked.read(CHUNK):  # to the end, where the checksum is compared
                if unpacked.tell() > LONGEST_ARCHIVE:
                    raise tarfile.ReadError("the archive does not end")
    except (gzip.BadGzipFile, EOFError, zlib.error, tarfile.TarError) as error:
        raise DataError(f"archive '{archive}' is damaged or incomplete: {edition.remedy} again") from error
    return contents


class _Bounded:
    """An unpacked archive that is given up where it asks for more memory, or goes on for longer, than a real one."""

    def __init__(self, unpacked: gzip.GzipFile, edition: Edition) -> None:
        self.unpacked = unpacked
        self.longest = max(edition.files.values()) * edition.record + CHUNK
        self.tell = unpacked.tell

    def read(self, size: int) -> bytes:
        """The next `size` bytes; raises tarfile.ReadError."""
        if not 0 <= size <= self.longest:
            raise tarfile.ReadError(f"an entry claims {size} bytes")
        return self.unpacked.read(size)

    def seek(self, position: int) -> int:
        """Goes on at `position`; raises tarfile.ReadError."""
        if not 0 <= position <= LONGEST_ARCHIVE:
            raise tarfile.ReadError(f"an entry ends at byte {position}")
        return self.unpacked.seek(position)


def _bounded(unpacked: gzip.GzipFile, edition: Edition) -> IO[bytes]:
    """The archive, of which tarfile uses what `_Bounded` has."""
    return cast(IO[bytes], _Bounded(unpacked, edition))


def _check_size(edition: Edition, name: str, size: int, place: Path) -> None:
    """Asked before a file is read: what claims to be huge is never unpacked."""
    if name in edition.files:
        wanted = edition.files[name] * edition.record
        fits, rule = size == wanted, f"instead of {wanted:,}"
    else:
        fits, rule = size <= LONGEST_NAMES, "and should have few"
    if not fits:
        raise DataError(f"{name} in '{place}' has {size:,} bytes {rule}: {edition.remedy} again")


def _missing(edition: Edition, root: Path) -> DataError:
    if not root.is_dir():
        return MissingDataError(f"data folder '{root}' does not exist: {edition.remedy} and give its folder")
    if any((root / name).exists() for name in edition.pickled):
        what = f"the pickled version of {edition.title}, which is never loaded"
        return MissingDataError(f"'{root}' holds {what}: {edition.remedy} instead")
    if (root / "train").is_dir():
        return DataError(
            f"'{root}' holds folders, not the archive of {edition.title}: did you mean imagefolder:{root}?"
        )
    other = next((e for e in EDITIONS if (root / e.archive).exists()), None)
    if other is not None:
        return DataError(f"'{root}' holds {other.title}, not {edition.title}: did you mean {other.name}:{root}?")
    return MissingDataError(f"'{root}' has neither {edition.archive} nor what it contains: {edition.remedy}")


def files(argument: str) -> Mapping[str, Path]:
    """The archive, or what can be of it in the folder or in the one that it unpacks to."""
    root = Path(argument).expanduser()
    if root.is_file():
        return {root.name: root}
    names = {name for edition in EDITIONS for name in (edition.archive, edition.names, *edition.files)}
    folders = ("", *(edition.folder for edition in EDITIONS))
    found = (root / folder / name for folder in folders for name in names)
    return {path.relative_to(root).as_posix(): path for path in found if path.is_file()}


EDITIONS = (CIFAR10, CIFAR100)
SOURCES = tuple(DataSource(edition.name, partial(load, edition), "DIR", files=files) for edition in EDITIONS)
