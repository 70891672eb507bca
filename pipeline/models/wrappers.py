"""Networks as people hand them over: taken out of what is wrapped around them, and cast to float32."""

from collections import Counter
from collections.abc import Callable

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from atopipe.pipeline.models.reparametrized import fold_weight_norm, require_plain_layers

Note = Callable[[str], None]
AROUND = (nn.DataParallel, nn.parallel.DistributedDataParallel, AveragedModel)


def unwrapped(model: nn.Module, note: Note) -> nn.Module:
    """The network without what is wrapped around it, inside it too, with plain float32 weights; `note` is told.

    Wrappers are DataParallel and its like, torch.compile, averages of weights, and modules that only hold another one.
    Raises ValueError, with the remedy, for TorchScript and quantised modules, whose layers cannot be changed.
    """
    found: Counter[str] = Counter()
    model = _core(model, found)
    for name, module in list(model.named_modules()):
        _require_python(name, module)
        for child_name, child in list(module.named_children()):
            setattr(module, child_name, _core(child, found, holders=False))
    require_plain_layers(model)
    if found:
        note(f"taken off the network: {' and '.join(sorted(found))}")
    if folded := fold_weight_norm(model):
        note(f"weight_norm folded into the weights of {folded} {'layer' if folded == 1 else 'layers'}")
    kinds = {t.dtype for t in (*model.parameters(), *model.buffers()) if t.is_floating_point()} - {torch.float32}
    if kinds:
        note(f"network cast from {' and '.join(sorted(str(kind).removeprefix('torch.') for kind in kinds))} to float32")
        model.float()
    return model


def _core(module: nn.Module, found: "Counter[str]", *, holders: bool = True) -> nn.Module:
    """What is inside of any number of wrappers; `holders`: modules without a forward() of their own count as such."""
    while (inner := _inside(module, holders=holders)) is not None:
        found[_name(module)] += 1
        module = inner
    return module


def _inside(module: nn.Module, *, holders: bool) -> nn.Module | None:
    if isinstance(module, AROUND):
        return module.module
    inner = getattr(module, "_orig_mod", None)
    if isinstance(inner, nn.Module):
        return inner
    children = list(module.children())
    runs = any("forward" in vars(kind) for kind in type(module).__mro__ if kind is not nn.Module)
    return children[0] if holders and not runs and len(children) == 1 else None


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
