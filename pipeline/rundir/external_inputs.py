"""What a run reads from outside its directory, as digests: the user's code, weights and images.

Every file's content counts. As long as all names, sizes and times of change are as they were, the digest of the last
look is taken; what is not there at all, as on another machine, is taken to be as it was.
"""

from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from atopipe.pipeline.config.schema import Config
from atopipe.pipeline.system.files import (
    DamagedError,
    read_sealed,
    sha256_bytes,
    sha256_file,
    sha256_json,
    write_sealed,
)
from atopipe.pipeline.system.user_code import code_files, is_factory_name

# Setting -> what a stage that depends on it also depends on.
OUTSIDE: Mapping[str, tuple[str, ...]] = {"model": ("model code", "weights"), "data": ("data", "data code")}
LIBRARIES: Mapping[str, str] = {"digits": "scikit-learn", "imagefolder": "pillow"}  # that make the images of a source
CIFAR = ("*.bin", "*.txt", "*binary.tar.gz")


def fingerprints(config: Config, record: Path) -> dict[str, str]:
    """Name -> digest of the names and contents of its files, for what the configuration reads from outside.

    `record` is a JSON file of what the last look saw; it is written anew where something has changed.
    """
    known = _known(record)
    found = {name: _look(files, known.get(name, {})) for name, files in outside_files(config).items()}
    if found != known:
        with suppress(OSError):  # without a record, everything is read again next time
            write_sealed(record, found)
    return {name: look["content"] for name, look in found.items()}


def libraries_of(config: Config, settings: Iterable[str]) -> list[str]:
    """The libraries behind the network and the images of a stage that depends on these settings."""
    network = ["timm"] if config.model.name.startswith("timm/") and "model" in settings else []
    images = LIBRARIES.get(config.data.source.partition(":")[0]) if "data" in settings else None
    return [*network, *filter(None, [images])]


def outside_files(config: Config) -> dict[str, dict[str, Path]]:
    """What the run reads -> its files by name; none where they are not there."""
    model, source = config.model, config.data.source
    scheme, _, argument = source.partition(":")
    found: dict[str, dict[str, Path]] = {}
    if is_factory_name(model.name):
        found["model code"] = code_files(model.name)
    if model.weights:
        found["weights"] = _one(Path(model.weights))
    if scheme in READERS:
        found["data"] = READERS[scheme](Path(argument).expanduser())
    elif is_factory_name(source):
        found["data code"] = code_files(source)
    return found


def _images(root: Path) -> dict[str, Path]:
    """The files that source imagefolder reads, or all that there are where it would refuse the folder."""
    from atopipe.pipeline.data.sources.image_folder_layout import find_splits
    from atopipe.pipeline.system.errors import DataError

    try:
        return {path.relative_to(root).as_posix(): path for split in find_splits(root) for path in split.paths}
    except DataError:
        return {path.relative_to(root).as_posix(): path for path in root.rglob("*") if path.is_file()}


def _cifar(root: Path) -> dict[str, Path]:
    """The archive, or what can be of it in the folder or in the one that it unpacks to."""
    patterns = [*CIFAR, *(f"cifar-10*bin*/{pattern}" for pattern in CIFAR)]
    found = {path for pattern in patterns for path in root.glob(pattern) if path.is_file()}
    return _one(root) or {path.relative_to(root).as_posix(): path for path in found}


def _one(file: Path) -> dict[str, Path]:
    return {file.name: file} if file.is_file() else {}


# Source -> the files it reads, by their names in its folder.
READERS: Mapping[str, Callable[[Path], dict[str, Path]]] = {
    "imagefolder": _images,
    "cifar10": _cifar,
    "cifar100": _cifar,
}


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
    return {"seen": seen, "content": sha256_bytes(content.encode())}


def _known(record: Path) -> dict[str, dict[str, str]]:
    try:
        return {name: dict(look) for name, look in read_sealed(record).items()}
    except (OSError, DamagedError):
        return {}
