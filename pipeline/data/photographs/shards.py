"""Shards in WebDataset's format: tar archives in which the files of an example share a name up to its first dot.

`KEY.jpg` (or another image) and `KEY.cls`, the class number as text. An archive is indexed once and then read at any
place: it needs neither a library nor a sequential pass, and epochs are shuffled as a whole.
"""

import re
import tarfile
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from atopipe.pipeline.system.errors import DataError

if TYPE_CHECKING:
    from atopipe.pipeline.data.photographs.encoded import EncodedSlices

SUFFIXES = frozenset({"bmp", "gif", "jpeg", "jpg", "pgm", "png", "ppm", "tif", "tiff", "webp"})
LABEL = "cls"
LONGEST_LABEL = 20  # bytes


@dataclass
class Index:
    """Where each example of some shards lies: number of the shard, first byte, bytes; and its class."""

    shard: "array[int]" = field(default_factory=lambda: array("i"))
    start: "array[int]" = field(default_factory=lambda: array("q"))
    length: "array[int]" = field(default_factory=lambda: array("q"))
    label: "array[int]" = field(default_factory=lambda: array("q"))

    def encoded(self, files: Sequence[Path]) -> "EncodedSlices":
        """The pictures themselves."""
        import numpy as np

        from atopipe.pipeline.data.photographs.encoded import EncodedSlices

        start, length = (np.frombuffer(column, np.int64) for column in (self.start, self.length))
        return EncodedSlices(files, np.frombuffer(self.shard, np.int32), start, length)


def read_index(files: Sequence[Path]) -> Index:
    """The examples of all shards, in order; DataError for a damaged one, or one in which they are incomplete."""
    index = Index()
    for number, path in enumerate(files):
        try:
            with tarfile.open(path, "r:") as archive:
                for start, length, label in _examples(archive, path):
                    index.shard.append(number)
                    index.start.append(start)
                    index.length.append(length)
                    index.label.append(label)
        except (tarfile.TarError, OSError, EOFError) as error:
            raise DataError(f"shard '{path}' is damaged ({error}): fetch or make it again") from error
    return index


def _examples(archive: tarfile.TarFile, path: Path) -> Iterator[tuple[int, int, int]]:
    """First byte, bytes and class of every image; its files are neighbours."""
    key, image, label = "", None, None
    for member in archive:
        if not member.isfile():
            continue
        own, _, suffix = _parts(member.name)
        if own != key:
            yield from _complete(key, image, label, path)
            key, image, label = own, None, None
        if suffix.lower() in SUFFIXES:
            image = (member.offset_data, member.size)
        elif suffix == LABEL:
            label = _label(archive, member, path)
    yield from _complete(key, image, label, path)
    if archive.fileobj is None or path.stat().st_size < archive.offset:
        raise tarfile.ReadError("it ends in the middle")


def _parts(name: str) -> tuple[str, str, str]:
    folder, slash, file = name.rpartition("/")
    stem, dot, suffix = file.partition(".")
    return f"{folder}{slash}{stem}", dot, suffix


def _complete(key: str, image: tuple[int, int] | None, label: int | None, path: Path) -> Iterator[tuple[int, int, int]]:
    if image is not None and label is not None:
        yield (*image, label)
    elif image is not None:
        raise DataError(f"shard '{path}' has no class of '{key}': add {key}.{LABEL} with its number")


def _label(archive: tarfile.TarFile, member: tarfile.TarInfo, path: Path) -> int:
    file = archive.extractfile(member)
    text = file.read(LONGEST_LABEL) if file else b""
    if not text.strip().isdigit():
        raise DataError(f"shard '{path}' has the class {text[:LONGEST_LABEL]!r} in '{member.name}': give its number")
    return int(text)


def require_all(files: Sequence[Path], folder: Path, part: str) -> None:
    """DataError where the numbers in the names of the shards leave one out."""
    numbered = [int(found[1]) for path in files if (found := re.search(r"(\d+)\.tar$", path.name))]
    missing = sorted({*range(numbered[0], numbered[-1] + 1)} - {*numbered}) if numbered else []
    if missing:
        raise DataError(f"'{folder}' has no {part} shard number {missing[0]}: fetch it, or rename those behind it")
