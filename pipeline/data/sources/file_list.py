"""Many files below a folder, in flat arrays: a million of them take the bytes of their names and no objects."""

import hashlib
import os
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import overload

from atopipe.pipeline.data.source import FileState, Listing


@dataclass(frozen=True)
class Found:
    """Files of one folder: their names from the root, ascending, and what the file system says of them."""

    names: Sequence[str]
    sizes: "array[int]"  # bytes
    times: "array[int]"  # of the last change, ns


class FileList(Sequence[Path]):
    """Files below `root`, in the order in which they were added."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._names, self._ends = bytearray(), array("q", [0])
        self.sizes, self.times = array("q"), array("q")

    def add(self, found: Found) -> None:
        """Behind those that are there."""
        together = "".join(found.names)
        plain = together.isascii()  # then a character is a byte
        lengths = map(len, found.names) if plain else (len(os.fsencode(name)) for name in found.names)
        self._ends.extend(accumulate(lengths, initial=self._ends.pop()))
        self._names += os.fsencode(together)
        self.sizes += found.sizes
        self.times += found.times

    def __len__(self) -> int:
        return len(self.sizes)

    @overload
    def __getitem__(self, index: int) -> Path: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Path]: ...
    def __getitem__(self, index: int | slice) -> Path | Sequence[Path]:
        if isinstance(index, slice):
            return [self[position] for position in range(*index.indices(len(self)))]
        return self.root / self.name(index)

    def name(self, index: int) -> str:
        """Of the file at `index`, from the root."""
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        position = index % len(self)
        return os.fsdecode(bytes(self._names[self._ends[position] : self._ends[position + 1]]))

    def digest(self) -> bytes:
        """SHA-256 of all names, sizes and times."""
        digest = hashlib.sha256(len(self).to_bytes(8, "little"))
        for part in (self._names, self._ends, self.sizes, self.times):
            digest.update(part)
        return digest.digest()


class ListedFiles(Listing):
    """The files of several lists by their names from a common root, with what the scan saw of them."""

    def __init__(self, root: Path, parts: Mapping[str, FileList]) -> None:
        self.root, self.parts = root, parts

    def __len__(self) -> int:
        return sum(map(len, self.parts.values()))

    def __iter__(self) -> Iterator[str]:
        return (name for name, _, _ in self.states())

    def __getitem__(self, name: str) -> Path:
        return self.root / name

    def states(self) -> Iterator[FileState]:
        """Name, size and time of change of each, list after list."""
        for part, files in self.parts.items():
            for index in range(len(files)):
                yield FileState(f"{part}/{files.name(index)}", files.sizes[index], files.times[index])

    def total_bytes(self) -> int:
        """Of all files together."""
        return sum(sum(files.sizes) for files in self.parts.values())

    def digest(self) -> str:
        """SHA-256 of all states, in hexadecimal digits."""
        parts = (os.fsencode(name) + b"\0" + files.digest() for name, files in self.parts.items())
        return hashlib.sha256(b"".join(parts)).hexdigest()
