"""Start from trained weights: a file of tensors by name, and nothing that could run code."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from atopipe.pipeline.system.errors import MissingError, UsageError

WRAPPINGS = ("state_dict", "model", "model_state_dict")  # keys under which training scripts put the tensors
PREFIX = "module."  # left by data-parallel training
COUNTER = ".num_batches_tracked"


def load_weights(model: nn.Module, path: Path, classes: int) -> str:
    """Copy the tensors of a file into `model`, and say what was done in one sentence.

    safetensors, or a state dict that torch can load with `weights_only=True`. The head keeps its fresh weights where
    the file's is for another number of classes. Raises MissingError for a file that is not there, UsageError for one
    that cannot be read or belongs to another network.
    """
    found = {name.removeprefix(PREFIX): tensor for name, tensor in _read(path).items()}
    wanted = model.state_dict()
    missing = [name for name in wanted if name not in found and not name.endswith(COUNTER)]
    if missing:
        raise UsageError(
            f"--weights '{path}' belongs to another network: {_few(missing)} missing; give weights of this model"
        )
    other = {name: found[name] for name in wanted if name in found and found[name].shape != wanted[name].shape}
    strange = [name for name, tensor in other.items() if not _is_other_head(tensor, wanted[name], classes)]
    if strange:
        name = strange[0]
        raise UsageError(
            f"--weights '{path}' belongs to another network: its '{name}' is {list(found[name].shape)}, "
            f"not {list(wanted[name].shape)}; give weights of this model"
        )
    model.load_state_dict({**wanted, **{n: t for n, t in found.items() if n in wanted and n not in other}})
    return _said(path, other, [name for name in found if name not in wanted], classes)


def _is_other_head(tensor: Tensor, wanted: Tensor, classes: int) -> bool:
    return len(wanted) == classes and wanted.shape[1:] == tensor.shape[1:]


def _said(path: Path, other: Mapping[str, Tensor], spare: list[str], classes: int) -> str:
    sentence = f"from '{path}'"
    if other:
        theirs = len(next(iter(other.values())))
        sentence += f"; {_few(list(other))} re-initialised for {classes} classes instead of {theirs}"
    return f"{sentence}; {_few(spare)} not used" if spare else sentence


def _read(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise MissingError(f"--weights '{path}' does not exist: give the path of a file of weights")
    try:
        return _load_safetensors(path) if path.suffix == ".safetensors" else _load_torch(path)
    except Exception as error:  # both readers raise whatever a broken file makes them raise
        raise UsageError(
            f"--weights '{path}' cannot be read ({type(error).__name__}): "
            "give safetensors, or a state dict saved by torch.save that holds tensors only"
        ) from error


def _load_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    loaded: dict[str, Tensor] = load_file(path)
    return loaded


def _load_torch(path: Path) -> dict[str, Tensor]:
    loaded: Any = torch.load(path, map_location="cpu", weights_only=True)
    for key in WRAPPINGS:
        if isinstance(loaded, Mapping) and isinstance(loaded.get(key), Mapping):
            loaded = loaded[key]
    tensors = {name: value for name, value in dict(loaded).items() if isinstance(value, Tensor)}
    if not tensors:
        raise ValueError("no tensors")
    return tensors


def _few(names: list[str]) -> str:
    shown = ", ".join(f"'{name}'" for name in names[:2])
    return f"{shown} and {len(names) - 2} more" if len(names) > 2 else shown
