"""What a data source says of itself; each stands in a file of `sources/` and in the table of `load.py`.

Nothing heavy is imported here or on top of those files: the help of the command line reads the table.
"""

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from atopipe.pipeline.data.dataset import Data

OnProgress = Callable[[int, int], None]  # images done, images in all
DEFAULT_SIDE = 224  # pixels of the input, of photographs
STATISTICS_SAMPLE = 2048  # photographs whose mean and deviation stand for all


@dataclass(frozen=True)
class Request:
    """What a source is asked for: None as `input_size` leaves the choice to it, None as `resize` the margin around it.

    `resize`, `interpolation`: how photographs are scaled before the input is cut out of them; `least_crop`: the least
    share of their area that a random crop keeps in training, None for the usual augmentation.
    """

    seed: int
    input_size: int | None
    val_fraction: float
    resize: tuple[int, int] | None = None
    interpolation: str = "bilinear"
    least_crop: float | None = None


class FileState(NamedTuple):
    """What a file system says of a file without reading it: `size` in bytes, `time` of its last change in ns."""

    name: str
    size: int
    time: int


class Listing(Mapping[str, Path]):
    """Files by name, too many to hold each as an object; a scan has seen their states."""

    @abstractmethod
    def states(self) -> Iterator[FileState]:
        """Of every file, always in the same order."""

    @abstractmethod
    def total_bytes(self) -> int:
        """Of all files together."""

    @abstractmethod
    def digest(self) -> str:
        """SHA-256 of all states, in hexadecimal digits."""


def no_files(argument: str) -> Mapping[str, Path]:
    """Of a source that reads none of the user's files."""
    return {}


@dataclass(frozen=True)
class DataSource:
    """A kind of data set, named as `scheme:argument`; `argument` is what the help shows after the colon, if anything.

    load: the data set; raises DataError, which names the source and the remedy.
    files: name -> file of everything that `load` reads of the user's, for its digest; empty where it is not there. A
    source that may have a million of them gives a `Listing`.
    libraries: the packages that make the images; another version makes a stage out of date.
    reads: what those files are, in the answer to what has changed.
    """

    scheme: str
    load: "Callable[[str, Request, OnProgress | None], Data]"
    argument: str = ""
    libraries: tuple[str, ...] = ()
    files: Callable[[str], Mapping[str, Path]] = no_files
    reads: str = "data"

    def __str__(self) -> str:
        """As it is written on the command line."""
        return f"{self.scheme}:{self.argument}" if self.argument else self.scheme
