"""Encoded pictures that are read one at a time, in any order: files, or slices of larger files."""

import mmap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class Encoded(Protocol):
    """The bytes of pictures, by number."""

    def __len__(self) -> int: ...

    def read(self, index: int) -> bytes:
        """The picture as it was encoded; raises OSError."""
        ...

    def name(self, index: int) -> str:
        """Where it lies, for messages."""
        ...

    def sizes(self) -> NDArray[np.int64]:
        """Bytes of each, [N]."""
        ...


@dataclass(frozen=True, eq=False)
class EncodedFiles:
    """A file for each picture; `lengths` [N]: their bytes, where a scan has seen them."""

    paths: Sequence[Path]
    lengths: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, index: int) -> bytes:
        """The whole file."""
        return self.paths[index].read_bytes()

    def name(self, index: int) -> str:
        """Its path."""
        return str(self.paths[index])

    def sizes(self) -> NDArray[np.int64]:
        """As the scan saw them, or the file system has them now."""
        if self.lengths is not None:
            return self.lengths
        return np.fromiter((path.stat().st_size for path in self.paths), np.int64, len(self.paths))


class EncodedSlices:
    """Pictures in a few large files, which are mapped into memory: their pages are the system's, shared and dropped.

    `shard` [N]: the file of each picture, a number of `files`; `start`, `length` [N]: where it lies in it, in bytes.
    """

    def __init__(
        self,
        files: Sequence[Path],
        shard: NDArray[np.int32],
        start: NDArray[np.int64],
        length: NDArray[np.int64],
    ) -> None:
        self.files, self.shard, self.start, self.length = files, shard, start, length
        self._maps: list[mmap.mmap] = []
        for path in files:
            with path.open("rb") as file:
                self._maps.append(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))

    def __len__(self) -> int:
        return len(self.start)

    def read(self, index: int) -> bytes:
        """A copy of the slice."""
        start = int(self.start[index])
        whole = self._maps[int(self.shard[index])]
        return whole[start : start + int(self.length[index])]

    def name(self, index: int) -> str:
        """The file, and the byte in it."""
        return f"{self.files[self.shard[index]]}:{self.start[index]}"

    def sizes(self) -> NDArray[np.int64]:
        """The lengths of the slices."""
        return self.length
