"""Data sets by name, and the user's own. A new source is a file in `sources` and a line in SOURCES."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from atopipe.pipeline.data.source import DataSource, OnProgress, Request
from atopipe.pipeline.data.sources import cifar, digits, image_folder, user_function, webdataset
from atopipe.pipeline.system.errors import DataError
from atopipe.pipeline.system.text import did_you_mean
from atopipe.pipeline.system.user_code import is_factory_name, is_importable

if TYPE_CHECKING:
    from atopipe.pipeline.data.dataset import Data

SOURCES: Mapping[str, DataSource] = {
    source.scheme: source for source in (digits.SOURCE, *cifar.SOURCES, image_folder.SOURCE, webdataset.SOURCE)
}


def source_names() -> tuple[str, ...]:
    """The sources as they are written on the command line."""
    return (*map(str, SOURCES.values()), str(user_function.SOURCE))


def find_source(name: str) -> tuple[DataSource, str]:
    """The source and the argument that `name` stands for; DataError where it stands for none."""
    scheme, _, argument = name.partition(":")
    if _names_a_factory(name, scheme):
        return user_function.SOURCE, name
    if scheme not in SOURCES:
        raise DataError(f"unknown data source '{name}': {_suggestion(name, scheme)}")
    if bool(argument) != bool(SOURCES[scheme].argument):
        raise DataError(f"data source '{name}' is not valid: write {SOURCES[scheme]}")
    return SOURCES[scheme], argument


def load_data(
    source: str,
    *,
    seed: int,
    input_size: int | None = None,
    val_fraction: float = 0.2,
    resize: tuple[int, int] | None = None,
    interpolation: str = "bilinear",
    least_crop: float | None = None,
    on_progress: OnProgress | None = None,
) -> "Data":
    """The data set `source` names; `seed` and `val_fraction` split a source without a validation part.

    `input_size` is the side of the square input, chosen from the images if absent; photographs are scaled by
    `interpolation` to cover `resize`, by default a little more than the input, and cut to it; random crops of them keep
    `least_crop` of the area at least.
    `on_progress(done, total)` is called while images are decoded. Raises DataError (exit code 2), or MissingDataError
    (5) if there is no such data.
    """
    from atopipe.pipeline.data.checks import checked

    found, argument = find_source(source)
    request = Request(seed, input_size, val_fraction, resize, interpolation, least_crop)
    return checked(f"data '{source}'", found.load(argument, request, on_progress))


def _names_a_factory(name: str, scheme: str) -> bool:
    """A slip of the pen in the name of a source (`imagefoldr:data`) looks like a factory, but cannot be imported."""
    misspelt = did_you_mean(scheme, SOURCES) is not None
    return scheme not in SOURCES and is_factory_name(name) and (not misspelt or is_importable(scheme))


def _suggestion(name: str, scheme: str) -> str:
    if Path(name).is_dir():
        return f"did you mean imagefolder:{name}?"
    *most, last = source_names()
    return did_you_mean(scheme, SOURCES) or f"give {', '.join(most)} or {last}"
