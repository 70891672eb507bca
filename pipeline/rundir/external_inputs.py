"""What a run reads from outside its directory, as digests: the user's code, weights and images.

Every file's content counts. As long as all names, sizes and times of change are as they were, the digest of the last
look is taken; what is not there at all, as on another machine, is taken to be as it was.
"""

import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from pydantic import BaseModel, RootModel

from atopipe.pipeline.config.schema import BASELINE, Config, ModelSettings
from atopipe.pipeline.data.load import find_source
from atopipe.pipeline.data.source import DataSource, no_files
from atopipe.pipeline.models.weights.source import file_named, is_file_name
from atopipe.pipeline.system.code_files import code_files
from atopipe.pipeline.system.errors import DataError
from atopipe.pipeline.system.files import (
    DamagedError,
    read_sealed,
    sha256_bytes,
    sha256_file,
    sha256_json,
    write_sealed,
)
from atopipe.pipeline.system.machine import available_processors
from atopipe.pipeline.system.user_code import is_factory_name

# Setting -> what a stage that depends on it also depends on.
OUTSIDE: Mapping[str, tuple[str, ...]] = {
    "model": ("model code", "weights"),
    "data": ("data", "data code"),
    "teacher": ("teacher",),
    "latency_table": ("latency table",),
}


def fingerprints(config: Config, record: Path) -> dict[str, str]:
    """Name -> digest of the names and contents of its files, for what the configuration reads from outside.

    `record` is a JSON file of what the last look saw; it is rewritten if something has changed.
    """
    known = _known(record)
    found = {name: _look(files, known.get(name, {})) for name, files in _outside(config).items()}
    if found != known:
        with suppress(OSError):  # without a record, everything is read again next time
            write_sealed(record, found)
    return {name: look["content"] for name, look in found.items()}


def libraries_of(config: Config, settings: Iterable[str]) -> list[str]:
    """The libraries behind the network and the images of a stage that depends on these settings."""
    network = ["timm"] if config.model.name.startswith("timm/") and "model" in settings else []
    source, _ = _source(config)
    return [*network, *(source.libraries if source and "data" in settings else ())]


def outside_files(config: Config) -> dict[str, dict[str, Path]]:
    """What the run reads -> its files by name; none where they are not there, or where loading them will refuse."""
    return {name: {} if isinstance(files, DataError) else files for name, files in _outside(config).items()}


def _outside(config: Config) -> dict[str, dict[str, Path] | DataError]:
    """The same, with the refusal in the place of files that loading will refuse."""
    model, (source, argument) = config.model, _source(config)
    found: dict[str, dict[str, Path] | DataError] = {}
    if is_factory_name(model.name):
        found["model code"] = code_files(model.name)
    if model.weights:
        found["weights"] = _one(_weights(model, model.weights))
    if config.teacher not in (None, BASELINE):
        found["teacher"] = _one(_weights(model, str(config.teacher)))
    if config.latency_table is not None:
        found["latency table"] = _one(Path(config.latency_table))
    if source is not None and source.files is not no_files:
        try:
            found[source.reads] = dict(source.files(argument))
        except DataError as error:
            found[source.reads] = error
    return found


def _weights(model: ModelSettings, name: str) -> Path:
    """The file of the weights of that name, wherever the library that names them keeps it."""
    if is_file_name(name):
        return file_named(name)
    from atopipe.pipeline.models.weights.find import find_weights

    return find_weights(model.name, name, model.args).file


def _source(config: Config) -> tuple[DataSource | None, str]:
    """The source of the images and its argument; None for a name that loading the data will refuse."""
    try:
        return find_source(config.data.source)
    except DataError:
        return None, ""


def _one(file: Path) -> dict[str, Path]:
    return {file.name: file} if file.is_file() else {}


def _look(files: Mapping[str, Path] | DataError, known: Mapping[str, str]) -> dict[str, str]:
    """What there is to see of the files, and the digest of their contents; of a refusal, its words."""
    if isinstance(files, DataError):
        return {"seen": "", "content": sha256_bytes(os.fsencode(str(files)))}
    names, paths = sorted(files), [files[name] for name in sorted(files)]
    states = [path.stat() for path in paths]
    seen = sha256_json([[n, s.st_size, s.st_mtime_ns] for n, s in zip(names, states, strict=True)])
    if known and (not files or seen == known["seen"]):
        return dict(known)
    with ThreadPoolExecutor(available_processors()) as pool:  # reading and hashing leave Python's lock alone
        digests = list(pool.map(sha256_file, paths))
    content = "".join(f"{name}\0{digest}\n" for name, digest in zip(names, digests, strict=True))
    return {"seen": seen, "content": sha256_bytes(os.fsencode(content))}


class Look(BaseModel):
    """What there was to see of some files, and the digest of their contents."""

    seen: str
    content: str


class Record(RootModel[dict[str, Look]]):
    """inputs.json."""


def _known(record: Path) -> dict[str, dict[str, str]]:
    try:
        return read_sealed(record, Record)
    except (OSError, DamagedError):
        return {}
