"""What a run reads from outside its directory, as digests: the user's code, weights and images.

Every file's content counts. As long as all names, sizes and times of change are as they were, the digest of the last
look is taken; what is not there at all, as on another machine, is taken to be as it was. Of a large data set, which
would take an hour to read from a slow disk, the names, sizes and times of change count instead.
"""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from pydantic import BaseModel, RootModel

from atopipe.pipeline.config.schema import BASELINE, CONTENT, Config, ModelSettings
from atopipe.pipeline.data.load import find_source
from atopipe.pipeline.data.source import DataSource, FileState, Listing, no_files
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

MANY, MUCH = 20_000, 2**31  # files or bytes of a data set that is large
AT_ONCE = 1024  # files that wait for a thread


def fingerprints(config: Config, record: Path) -> dict[str, str]:
    """Name -> digest of the names and contents of its files, for what the configuration reads from outside.

    `record` is a JSON file of what the last look saw; it is rewritten if something has changed.
    """
    known = _known(record)
    read_all = config.data.fingerprint == CONTENT
    found = {name: _look(files, known.get(name, {}), read_all) for name, files in _outside(config).items()}
    if found != known:
        with suppress(OSError):  # without a record, everything is read again next time
            write_sealed(record, found)
    return {name: look["content"] for name, look in found.items()}


def lend_look(record: Path, borrower: Path, *, only_data: bool) -> None:
    """Gives another run, which has no record yet, what `record` knows of all inputs or of the images alone.

    So the images of a data set are read once for many runs: each compares names, sizes and times only.
    """
    known = {name: look for name, look in _known(record).items() if not only_data or name in OUTSIDE["data"]}
    if known and not borrower.exists():
        with suppress(OSError):
            write_sealed(borrower, known)


def libraries_of(config: Config, settings: Iterable[str]) -> list[str]:
    """The libraries behind the network and the images of a stage that depends on these settings."""
    network = ["timm"] if config.model.name.startswith("timm/") and "model" in settings else []
    source, _ = _source(config)
    return [*network, *(source.libraries if source and "data" in settings else ())]


def outside_files(config: Config) -> dict[str, Mapping[str, Path]]:
    """What the run reads -> its files by name; none where they are not there, or where loading them will refuse."""
    return {name: {} if isinstance(files, DataError) else files for name, files in _outside(config).items()}


def _outside(config: Config) -> dict[str, Mapping[str, Path] | DataError]:
    """The same, with the refusal in the place of files that loading will refuse."""
    model, (source, argument) = config.model, _source(config)
    found: dict[str, Mapping[str, Path] | DataError] = {}
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
            found[source.reads] = source.files(argument)
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


def _look(files: Mapping[str, Path] | DataError, known: Mapping[str, str], read_all: bool = False) -> dict[str, str]:
    """What there is to see of the files, and the digest of their contents; of a refusal, its words."""
    if isinstance(files, DataError):
        return {"seen": "", "content": sha256_bytes(os.fsencode(str(files)))}
    if known and not files:
        return dict(known)
    if isinstance(files, Listing) and _is_large(files) and not read_all:
        state = files.digest()
        return {"seen": state, "content": state}
    states = sorted(files.states() if isinstance(files, Listing) else _states(files))
    seen = sha256_json([[state.name, state.size, state.time] for state in states])
    if known and seen == known["seen"]:
        return dict(known)
    names = [state.name for state in states]
    return {"seen": seen, "content": sha256_bytes(b"".join(_content_lines(files, names)))}


def _is_large(files: Listing) -> bool:
    return len(files) > MANY or files.total_bytes() > MUCH


def _states(files: Mapping[str, Path]) -> Iterator[FileState]:
    for name, path in files.items():
        state = path.stat()
        yield FileState(name, state.st_size, state.st_mtime_ns)


def _content_lines(files: Mapping[str, Path], names: Sequence[str]) -> Iterator[bytes]:
    """Name and digest of each file, read by several threads: reading and hashing leave Python's lock alone."""
    pool = ThreadPoolExecutor(available_processors())
    try:
        for start in range(0, len(names), AT_ONCE):
            part = names[start : start + AT_ONCE]
            for name, digest in zip(part, pool.map(lambda name: sha256_file(files[name]), part), strict=True):
                yield os.fsencode(f"{name}\0{digest}\n")
    finally:
        pool.shutdown(cancel_futures=True)  # who is told to end does not read the rest first


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
