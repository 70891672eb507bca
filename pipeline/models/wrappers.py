"""Networks as people hand them over: taken out of what is wrapped around them, and cast to float32."""

from collections import Counter
from collections.abc import Callable

import torch
from torch import nn

Note = Callable[[str], None]


def unwrapped(model: nn.Module, note: Note) -> nn.Module:
    """The network without DataParallel and torch.compile, inside it too, in float32; `note` is told what was done.

    Raises ValueError, with the remedy, for a TorchScript module, whose layers cannot be changed.
    """
    found: Counter[str] = Counter()
    model = _core(model, found)
    for name, module in list(model.named_modules()):
        _require_python(name, module)
        for child_name, child in list(module.named_children()):
            setattr(module, child_name, _core(child, found))
    if found:
        note(f"taken off the network: {' and '.join(sorted(found))}")
    kinds = {t.dtype for t in (*model.parameters(), *model.buffers()) if t.is_floating_point()} - {torch.float32}
    if kinds:
        note(f"network cast from {' and '.join(sorted(str(kind).removeprefix('torch.') for kind in kinds))} to float32")
        model.float()
    return model


def _core(module: nn.Module, found: "Counter[str]") -> nn.Module:
    """What is inside of any number of wrappers."""
    while (inner := _inside(module)) is not None:
        found[_name(module)] += 1
        module = inner
    return module


def _inside(module: nn.Module) -> nn.Module | None:
    if isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel):
        return module.module  # type: ignore[no-any-return]
    inner = getattr(module, "_orig_mod", None)
    return inner if isinstance(inner, nn.Module) else None


def _name(module: nn.Module) -> str:
    return "torch.compile" if hasattr(module, "_orig_mod") else type(module).__name__


def _require_python(name: str, module: nn.Module) -> None:
    if isinstance(module, torch.jit.ScriptModule):
        what = f"'{name}' in it is" if name else "it is"
        raise ValueError(f"{what} a TorchScript module, which cannot be pruned: build the torch.nn.Module instead")
    try:
        module.train(module.training)
    except NotImplementedError:
        raise ValueError("it is a program of torch.export, which has one mode: build the torch.nn.Module") from None
