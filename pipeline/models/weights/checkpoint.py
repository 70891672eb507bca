"""Read a file of weights: safetensors, or what torch.save wrote. No code that a file names is ever run.

torch's weights-only unpickler builds tensors and plain values. Beyond those it is told of a few harmless classes that
training scripts store beside the weights; classes of libraries that need not be installed become empty placeholders.
"""

import argparse
import datetime
import pathlib
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from atopipe.pipeline.system.errors import MissingError, UsageError

STATE_ONLY = "save the weights alone there: torch.save(model.state_dict(), 'weights.pt')"
MODULES = ("torch.nn.modules.", "torch.fx.", "torch.jit.")  # of these, only a whole network has objects
TEXT = re.compile(rb"[\t\n\r\x20-\x7e]{64,}")
PLACEHOLDERS = (
    "omegaconf.dictconfig.DictConfig",
    "omegaconf.listconfig.ListConfig",
    "omegaconf.base.ContainerMetadata",
    "omegaconf.base.Metadata",
    "omegaconf.nodes.AnyNode",
    "typing.Any",
    "mmengine.logging.history_buffer.HistoryBuffer",
)
DICTIONARIES = ("lightning_fabric.utilities.data.AttributeDict", "pytorch_lightning.utilities.parsing.AttributeDict")


class Placeholder(dict[Any, Any]):
    """Takes the place of an object that is not needed; it does nothing with what it is given."""

    def __init__(self, *_: object) -> None:
        super().__init__()

    def __setstate__(self, state: object) -> None:
        """Forgets it."""


def read_checkpoint(path: Path, who: str) -> object:
    """Everything in the file, tensors on the CPU; `who` names it in messages.

    Raises MissingError for a file that is not there or not whole, UsageError for one that holds something else.
    """
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise MissingError(f"{who} {what}: give the path of a file of weights")
    with path.open("rb") as file:
        start = file.read(512)
    if not start:
        raise MissingError(f"{who} is empty: {_again(who)}")
    if TEXT.match(start):
        found = (
            "a Git LFS pointer (git lfs pull fetches the file)" if start.startswith(b"version https://git") else "text"
        )
        raise UsageError(f"{who} is {found}, not weights: give safetensors, or a file that torch.save wrote")
    if path.suffix == ".safetensors" or start[8:9] == b"{":
        return _read(_safetensors, path, who)
    return _read(_zip if start.startswith(b"PK") else _pickled, path, who)


def _again(who: str) -> str:
    return "delete it and fetch it again" if who.startswith("cached") else "copy or fetch it again"


def _read(reader: Callable[[Path, str], object], path: Path, who: str) -> object:
    try:
        return reader(path, who)
    except (UsageError, MissingError, MemoryError):
        raise
    except Exception as error:  # readers raise whatever a broken file makes them raise
        name = re.search(r"GLOBAL ([\w.]+)|(?:global|function) ([\w.]+)", str(error))
        if name:
            raise _unknown_class(who, [name[1] or name[2]]) from None
        raise MissingError(f"{who} is damaged or incomplete ({type(error).__name__}): {_again(who)}") from error


def _safetensors(path: Path, who: str) -> object:
    from safetensors.torch import load_file

    return load_file(path)


def _zip(path: Path, who: str) -> object:
    import torch

    with zipfile.ZipFile(path) as archive:
        names = {name.rpartition("/")[2] for name in archive.namelist()}
    if "constants.pkl" in names:
        raise UsageError(
            f"{who} is a TorchScript archive: load it with torch.jit.load where it was made, and {STATE_ONLY}"
        )
    if "data.pkl" not in names:
        raise UsageError(
            f"{who} is an archive, but not of torch.save: give safetensors, or a file that torch.save wrote"
        )
    with _known_classes():
        unknown = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    if unknown:
        raise _unknown_class(who, unknown)
    return _pickled(path, who)


def _pickled(path: Path, who: str) -> object:
    import torch

    with _known_classes():
        return torch.load(path, map_location="cpu", weights_only=True)


def _unknown_class(who: str, names: list[str]) -> UsageError:
    if any(name.startswith(MODULES) for name in names):
        return UsageError(f"{who} is a whole pickled network, which runs code when it is loaded: {STATE_ONLY}")
    return UsageError(
        f"{who} holds objects of {sorted(names)[0]}, which could run code when they are loaded: {STATE_ONLY}"
    )


def _dictionary(*_: object) -> dict[object, object]:
    return {}


def _list(*_: object) -> list[object]:
    return []


def _known_classes() -> Any:
    """A context in which torch also reads these: constructors without side effects, and placeholders."""
    import numpy as np
    import torch
    from numpy._core import multiarray

    kinds: list[Any] = [argparse.Namespace, np.dtype, np.ndarray]
    kinds += [datetime.datetime, datetime.date, datetime.time, datetime.timedelta, datetime.timezone]
    kinds += [list, dict, tuple, frozenset, int, float, str, bool, slice]
    kinds += [kind for kind in vars(np.dtypes).values() if isinstance(kind, type)]
    # torch puts items into plain dictionaries and lists only.
    kinds += [(_dictionary, "collections.defaultdict"), (_list, "collections.deque")]
    kinds += [(dict, name) for name in DICTIONARIES]
    kinds += [(Placeholder, name) for name in PLACEHOLDERS]
    for module in ("numpy.core", "numpy._core"):  # before and since NumPy 2
        functions = (multiarray.scalar, multiarray._reconstruct)
        kinds += [(function, f"{module}.multiarray.{function.__name__}") for function in functions]
    for module in ("pathlib", "pathlib._local"):  # a path of another system cannot be made as what it was
        for name in ("Path", "PurePath", "PosixPath", "PurePosixPath"):
            kinds.append((pathlib.PurePosixPath, f"{module}.{name}"))
        kinds += [(pathlib.PureWindowsPath, f"{module}.{name}") for name in ("WindowsPath", "PureWindowsPath")]
    return torch.serialization.safe_globals(kinds)
