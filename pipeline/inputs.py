"""What a run reads from outside its directory, as digests: the user's code, weights and images.

Every file's content counts. As long as all names, sizes and times of change are as they were, the digest of the last
look is taken; what is not there at all, as on another machine, is taken to be as it was.
"""

import hashlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from atopipe.pipeline.config import Config
from atopipe.pipeline.factories import is_factory_name
from atopipe.pipeline.files import DamagedError, read_sealed, sha256_file, sha256_json, write_sealed
from atopipe.pipeline.user_code import code_files

# Setting -> what a stage that depends on it also depends on.
OUTSIDE: Mapping[str, tuple[str, ...]] = {"model": ("model code", "weights"), "data": ("data", "data code")}
# Source -> what it reads of its folder; of one that is not named here, everything.
READ: Mapping[str, tuple[str, ...]] = {
    "imagefolder": ("train/**/*", "val/**/*", "test/**/*"),
    "cifar10": ("*.bin", "*.txt", "*.tar.gz", "cifar-10-batches-bin/*"),
    "cifar100": ("*.bin", "*.txt", "*.tar.gz", "cifar-100-binary/*"),
}


def fingerprints(config: Config, record: Path) -> dict[str, str]:
    """Name -> digest of the names and contents of its files, for what the configuration reads from outside.

    `record` is a JSON file of what the last look saw; it is written anew where something has changed.
    """
    known = _known(record)
    found = {name: _look(files, known.get(name, {})) for name, files in _outside(config).items()}
    if found != known:
        with suppress(OSError):  # without a record, everything is read again next time
            write_sealed(record, found)
    return {name: look["content"] for name, look in found.items()}


def _outside(config: Config) -> dict[str, dict[str, Path]]:
    """What it reads -> its files by name."""
    model, source = config.model, config.data.source
    scheme, _, argument = source.partition(":")
    found: dict[str, dict[str, Path]] = {}
    if is_factory_name(model.name):
        found["model code"] = code_files(model.name)
    if model.weights:
        found["weights"] = _files(Path(model.weights), ("*",))
    if scheme not in READ and is_factory_name(source):
        found["data code"] = code_files(source)
    elif argument:
        found["data"] = _files(Path(argument).expanduser(), READ.get(scheme, ("**/*",)))
    return found


def _files(place: Path, patterns: tuple[str, ...]) -> dict[str, Path]:
    """The file, or those of the folder that are not hidden, by their names in it."""
    if place.is_file():
        return {place.name: place}
    found = {path.relative_to(place): path for pattern in patterns for path in place.glob(pattern) if path.is_file()}
    return {n.as_posix(): p for n, p in found.items() if not any(part.startswith(".") for part in n.parts)}


def _look(files: Mapping[str, Path], known: Mapping[str, str]) -> dict[str, str]:
    """What there is to see of the files, and the digest of their contents."""
    names, paths = sorted(files), [files[name] for name in sorted(files)]
    states = [path.stat() for path in paths]
    seen = sha256_json([[n, s.st_size, s.st_mtime_ns] for n, s in zip(names, states, strict=True)])
    if known and (not files or seen == known["seen"]):
        return dict(known)
    with ThreadPoolExecutor() as pool:  # reading and hashing leave Python's lock alone
        digests = list(pool.map(sha256_file, paths))
    content = "".join(f"{name}\0{digest}\n" for name, digest in zip(names, digests, strict=True))
    return {"seen": seen, "content": hashlib.sha256(content.encode()).hexdigest()}


def _known(record: Path) -> dict[str, dict[str, str]]:
    try:
        return {name: dict(look) for name, look in read_sealed(record).items()}
    except (OSError, DamagedError):
        return {}
