"""Data sets by name: `digits`, `imagefolder:PATH`. A new source is a file in `sources` and a line in SOURCES."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from atopipe.pipeline.images import DataError, OnProgress
from atopipe.pipeline.nearest import did_you_mean
from atopipe.pipeline.sources import digits, imagefolder
from atopipe.pipeline.splits import Data, Request


@dataclass(frozen=True)
class Source:
    """`argument` is what follows the colon, as the help shows it; empty if nothing does."""

    load: Callable[[str, Request, OnProgress | None], Data]
    argument: str = ""


SOURCES: Mapping[str, Source] = {
    "digits": Source(digits.load),
    "imagefolder": Source(imagefolder.load, "PATH"),
}


def source_names() -> tuple[str, ...]:
    """The sources as they are written on the command line."""
    return tuple(_written(name) for name in SOURCES)


def load_data(
    source: str,
    *,
    seed: int,
    input_size: int | None = None,
    val_fraction: float = 0.2,
    on_progress: OnProgress | None = None,
) -> Data:
    """The data set `source` names; `seed` and `val_fraction` split a source that has no validation part of its own.

    `input_size` is the side of the square input, chosen from the images if absent. `on_progress(done, total)` is called
    while images are decoded. Raises DataError (exit code 2), or MissingDataError (5) if there is no such data.
    """
    name, _, argument = source.partition(":")
    if name not in SOURCES:
        raise DataError(f"unknown data source '{source}': {_suggestion(source, name)}")
    if bool(argument) != bool(SOURCES[name].argument):
        raise DataError(f"data source '{source}' is incomplete or has too much: write {_written(name)}")
    return SOURCES[name].load(argument, Request(seed, input_size, val_fraction), on_progress)


def _written(name: str) -> str:
    argument = SOURCES[name].argument
    return f"{name}:{argument}" if argument else name


def _suggestion(source: str, name: str) -> str:
    if Path(source).is_dir():
        return f"did you mean imagefolder:{source}?"
    return did_you_mean(name, SOURCES) or f"give {' or '.join(source_names())}"
