"""Layers whose weights are not plain float tensors: folded where nothing is lost by it, else refused by name.

A constraint that is part of training (`parametrizations.spectral_norm`, `orthogonal` and a user's own) stays: the
widths of those layers are not pruned.
"""

from collections.abc import Collection, Iterator

from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.weight_norm import WeightNorm

WEIGHT_NORM = "_WeightNorm"  # of torch.nn.utils.parametrizations
QUANTISING = ("torch.ao.nn.", "torch.ao.quantization.", "torch.nn.quantized.", "torchao.", "bitsandbytes.")
IN_FLOAT = ("QuantStub", "DeQuantStub", "FloatFunctional")  # they do nothing until a network is converted
PLAIN = (Tensor, nn.Parameter, nn.UninitializedParameter, nn.UninitializedBuffer)
NAMES = ("weight", "bias")


def fold_weight_norm(model: nn.Module) -> int:
    """Makes the weight of each layer with weight normalisation, old or new, a plain parameter of the same value.

    The network computes the same; trained is the weight itself. Returns how many layers there were.
    """
    folded = 0
    for module in list(model.modules()):
        old = [hook.name for hook in module._forward_pre_hooks.values() if isinstance(hook, WeightNorm)]
        new = [name for name, kinds in _parametrizations(module) if kinds == [WEIGHT_NORM]]
        for name in old:
            nn.utils.remove_weight_norm(module, name)
        for name in new:
            parametrize.remove_parametrizations(module, name)
        folded += bool(old or new)
    return folded


def require_plain_layers(model: nn.Module) -> None:
    """Raises ValueError, with the remedy, for layers that are quantised, hidden in a list, or computed by a hook."""
    known = set(model.modules())
    for name, module in model.named_modules():
        if (hidden := _hidden_in(module, known)) is not None:
            where, what = f"{name}.{hidden}".removeprefix("."), type(getattr(module, hidden)).__name__
            raise ValueError(
                f"'{where}' is a plain {what} of layers that nothing trains: use torch.nn.ModuleList or ModuleDict"
            )
        kind = type(module)
        if kind.__module__.startswith(QUANTISING) and kind.__name__ not in IN_FLOAT:
            raise ValueError(
                f"'{name}' in it is quantised ({kind.__name__}): build the network in float32 (--variants fp32,int8 "
                "quantises the delivered file)"
            )
        for tensor_name, tensor in _own_tensors(module):
            if tensor.is_inference():
                raise ValueError("it was built in torch.inference_mode() and cannot be trained: build it outside")
            if tensor.is_quantized or type(tensor) not in PLAIN:
                where = f"{name}.{tensor_name}".removeprefix(".")
                raise ValueError(f"'{where}' in it is a {_format(tensor)}: build the network with plain tensors")
        if (hooked := _hooked(module)) is not None:
            raise ValueError(f"a hook computes the {hooked} of '{name}': {_remedy(module)}")


def _hidden_in(module: nn.Module, known: Collection[nn.Module]) -> str | None:
    """The attribute with a list, tuple or dict of layers that are no parts of the network."""
    for name, value in vars(module).items():
        parts = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
        strangers = (part for part in parts if isinstance(part, nn.Module) and part not in known)
        if not name.startswith("_") and any(any(True for _ in part.parameters()) for part in strangers):
            return name
    return None


def _parametrizations(module: nn.Module) -> Iterator[tuple[str, list[str]]]:
    """Names of the layer's parametrized tensors, each with the kinds that compute it."""
    if parametrize.is_parametrized(module):
        for name, chain in list(module.parametrizations.items()):  # type: ignore[union-attr,operator]
            yield name, [type(part).__name__ for part in chain]


def _own_tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters(recurse=False)
    yield from module.named_buffers(recurse=False)


def _hooked(module: nn.Module) -> str | None:
    """The tensor that stands beside the parameters, and that a hook overwrites before each call."""
    held = vars(module)
    weight_norm = {hook.name for hook in module._forward_pre_hooks.values() if isinstance(hook, WeightNorm)}
    return next((n for n in NAMES if isinstance(held.get(n), Tensor) and n not in weight_norm), None)


def _remedy(module: nn.Module) -> str:
    names = {name for name, _ in module.named_buffers(recurse=False)}
    if any(name.endswith("_mask") for name in names):
        return "make it a plain parameter with torch.nn.utils.prune.remove"
    if any(name.endswith("_u") for name in names):
        return "use torch.nn.utils.parametrizations.spectral_norm, or remove_spectral_norm"
    return "register it as a parameter, or as a parametrization of torch.nn.utils.parametrize"


def _format(tensor: Tensor) -> str:
    return f"{type(tensor).__name__} of {str(tensor.dtype).removeprefix('torch.')}"
