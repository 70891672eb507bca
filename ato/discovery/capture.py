"""What every module of a network is called with, seen in one run that computes nothing."""

import copy
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from atopipe.ato import layers
from atopipe.ato.execution import is_out_of_memory

OTHER_FORMAT = re.compile(r"should be the same|same dtype|scalar type|unsupported dtype", re.IGNORECASE)


class GraphError(Exception):
    """The network's channels cannot be followed from layer to layer."""


@dataclass(frozen=True)
class Call:
    """The arguments of a module's first call, and whether it returned a tensor and nothing else."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    gives_tensor: bool = True

    def run(self, module: nn.Module, change: Callable[[Tensor], Tensor]) -> Any:
        """What the module returns when `change` is applied to every tensor it is called with."""
        arguments = _map(change, self.args)
        return module(*arguments, **_map(change, dict(self.kwargs)))


@dataclass(frozen=True)
class Twin:
    """A copy of a network for tracing, in evaluation mode, and the first call of every module that ran, by name."""

    model: nn.Module
    calls: Mapping[str, Call]


def trace_twin(model: nn.Module, example: Tensor) -> Twin:
    """A twin without values where the network runs without them, else one with values; `model` is not modified.

    `example`: one image [1, C, H, W]. Raises GraphError unless that gives logits [1, classes].
    """
    try:
        twin = weightless_twin(model)
        output, calls = capture_calls(twin, Call((torch.zeros(example.shape, device="meta"),), {}))
    except Exception as error:  # it looks at values, or holds tensors that are no buffers: then it must run for real
        if is_out_of_memory(error):
            raise
        twin = copy.deepcopy(model).cpu().float().eval()
        output, calls = _run(twin, torch.zeros(example.shape))
    _require_logits(type(model).__name__, output)
    for parameter in twin.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    return Twin(twin, calls)


def head_layer(model: nn.Module, example: Tensor) -> str:
    """The name of the convolution or linear layer that runs last for one image [1, C, H, W]: it gives the logits.

    Raises GraphError unless the network gives logits through such a layer.
    """
    twin = trace_twin(model, example)
    ran = [name for name in twin.calls if isinstance(twin.model.get_submodule(name), layers.MATRIX_LAYERS)]
    if not ran:
        raise GraphError(f"{type(model).__name__} has no layer that gives its logits")
    return ran[-1]


def weightless_twin(model: nn.Module) -> nn.Module:
    """A copy in evaluation mode whose tensors have shapes and no values (device "meta"): it takes no time, no memory.

    Tensors that are neither parameters nor buffers stay what they are.
    """
    empty: dict[int, Any] = {}
    for tensor in (*model.parameters(), *model.buffers()):
        values = torch.empty_like(tensor, device="meta", dtype=torch.float32 if tensor.is_floating_point() else None)
        is_parameter = isinstance(tensor, nn.Parameter)
        empty[id(tensor)] = nn.Parameter(values, values.is_floating_point()) if is_parameter else values.detach()
    return copy.deepcopy(model, empty).eval()


def capture_calls(model: nn.Module, call: Call) -> tuple[Any, dict[str, Call]]:
    """The network's output, and the first call of each of its modules, detached from the graph of gradients."""
    calls: dict[str, Call] = {}

    def capture(name: str) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if name not in calls:
                calls[name] = Call(_map(_kept, args), _map(_kept, kwargs))

        return hook

    def look(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            if name in calls and not isinstance(output, Tensor):
                calls[name] = replace(calls[name], gives_tensor=False)

        return hook

    handles = [m.register_forward_pre_hook(capture(name), with_kwargs=True) for name, m in model.named_modules()]
    handles += [m.register_forward_hook(look(name)) for name, m in model.named_modules()]
    try:
        return call.run(model, Tensor.detach), calls
    finally:
        for handle in handles:
            handle.remove()


def _kept(tensor: Tensor) -> Tensor:
    """Layers that work in place must not change what was captured."""
    return tensor.detach().clone()


def tensors(value: Any) -> Iterator[Tensor]:
    """Every tensor in nested tuples, lists and mappings."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from tensors(part)
    elif isinstance(value, tuple | list):
        for part in value:
            yield from tensors(part)


def _map(change: Callable[[Tensor], Tensor], value: Any) -> Any:
    """The same nested value with every tensor changed; what is neither container nor tensor stays."""
    if isinstance(value, Tensor):
        return change(value)
    if type(value) is dict:
        return {key: _map(change, part) for key, part in value.items()}
    if type(value) in (tuple, list):
        return type(value)(_map(change, part) for part in value)
    return value


def _run(model: nn.Module, image: Tensor) -> tuple[Any, dict[str, Call]]:
    name = type(model).__name__
    try:
        return capture_calls(model, Call((image,), {}))
    except Exception as error:  # whatever the network's code raises
        if is_out_of_memory(error):
            raise
        raise GraphError(
            f"{name} does not run on an image of shape {list(image.shape[1:])} ({cause(error)}); {remedy(error)}"
        ) from error


def cause(error: BaseException) -> str:
    """Kind and first line of what a network's code raised."""
    return f"{type(error).__name__}: {next(iter(str(error).splitlines()), 'no message')}"


def remedy(error: BaseException) -> str:
    """What may help against it."""
    if isinstance(error, TypeError) and "argument" in str(error):
        return "let its forward() take the images alone"
    if isinstance(error, RuntimeError) and OTHER_FORMAT.search(str(error)):
        return "let it compute in the number format of its input"
    if isinstance(error, AssertionError | RecursionError | NotImplementedError | AttributeError | NameError):
        return "repair its forward(), or choose another --input-size"
    return "choose another --input-size or another model"


def _require_logits(name: str, output: Any) -> None:
    """Raises GraphError unless one image gave one tensor of logits."""
    if not isinstance(output, Tensor) or output.dim() != 2:
        what = f"a tensor of shape {list(output.shape)}" if isinstance(output, Tensor) else f"a {type(output).__name__}"
        raise GraphError(
            f"{name} returns {what}, but must return logits [images, classes]; wrap it in a module that does"
        )
