"""Data sets by name, and the user's own. A new source is a file in `sources` and a line in SOURCES."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from atopipe.pipeline.data.dataset import Data, Request
from atopipe.pipeline.data.decoding import OnProgress
from atopipe.pipeline.data.sources import cifar, digits, image_folder, user_function
from atopipe.pipeline.system.errors import DataError
from atopipe.pipeline.system.text import did_you_mean
from atopipe.pipeline.system.user_code import is_factory_name, is_importable


@dataclass(frozen=True)
class Source:
    """`argument` is what follows the colon, as the help shows it; empty if nothing does."""

    load: Callable[[str, Request, OnProgress | None], Data]
    argument: str = ""


SOURCES: Mapping[str, Source] = {
    "digits": Source(digits.load),
    "cifar10": Source(partial(cifar.load, cifar.CIFAR10), "DIR"),
    "cifar100": Source(partial(cifar.load, cifar.CIFAR100), "DIR"),
    "imagefolder": Source(image_folder.load, "PATH"),
}
FACTORY = "your_pkg.mod:factory"


def source_names() -> tuple[str, ...]:
    """The sources as they are written on the command line."""
    return (*(_written(name) for name in SOURCES), FACTORY)


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
    request = Request(seed, input_size, val_fraction)
    name, _, argument = source.partition(":")
    if _names_a_factory(source, name):
        return user_function.load(source, request)
    if name not in SOURCES:
        raise DataError(f"unknown data source '{source}': {_suggestion(source, name)}")
    if bool(argument) != bool(SOURCES[name].argument):
        raise DataError(f"data source '{source}' is incomplete or has too much: write {_written(name)}")
    return SOURCES[name].load(argument, request, on_progress)


def _names_a_factory(source: str, name: str) -> bool:
    """A slip of the pen in the name of a source (`imagefoldr:data`) looks like a factory, but cannot be imported."""
    misspelt = did_you_mean(name, SOURCES) is not None
    return name not in SOURCES and is_factory_name(source) and (not misspelt or is_importable(name))


def _written(name: str) -> str:
    argument = SOURCES[name].argument
    return f"{name}:{argument}" if argument else name


def _suggestion(source: str, name: str) -> str:
    if Path(source).is_dir():
        return f"did you mean imagefolder:{source}?"
    *most, last = source_names()
    return did_you_mean(name, SOURCES) or f"give {', '.join(most)} or {last}"
