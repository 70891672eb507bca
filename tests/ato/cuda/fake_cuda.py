"""A CUDA device that is not there: shapes and devices are real, values are not, and every operation is counted.

A mix of devices raises FakeTensorDeviceMismatchError, and what waits for a value, as `float(tensor)` does,
DataDependentOutputException. Backward does not run.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

CUDA = torch.device("cuda")
# Operations that only describe memory that is there: nothing is started on the device.
VIEWS = frozenset(
    [
        "device",
        "_unsafe_view",
        "alias",
        "as_strided",
        "detach",
        "empty",
        "empty_like",
        "expand",
        "lift_fresh",
        "new_empty",
        "permute",
        "select",
        "slice",
        "split",
        "split_with_sizes",
        "squeeze",
        "t",
        "transpose",
        "unbind",
        "unfold",
        "unsqueeze",
        "view",
    ]
)


class Operations(TorchDispatchMode):
    """What is started on the device while active, by name; `waits`: copies to it that the host waits for."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()
        self.waits: list[str] = []

    def __torch_dispatch__(
        self, function: Any, types: Any, arguments: Sequence[Any] = (), named: Mapping[str, Any] | None = None
    ) -> Any:
        name, named = function.overloadpacket.__name__, dict(named or {})
        if name not in VIEWS:
            self.counts[name] += 1
        tensors = [value for value in tree_leaves((arguments, named)) if isinstance(value, Tensor)]
        devices = {tensor.device.type for tensor in tensors if tensor.dim() > 0}  # numbers travel with the launch
        copied = name == "_to_copy" and devices == {"cpu"} and torch.device(named.get("device") or "cpu").type == "cuda"
        if (copied and not named.get("non_blocking")) or (name in ("index", "copy_") and len(devices) > 1):
            self.waits.append(name)
        return function(*arguments, **named)

    @property
    def total(self) -> int:
        return self.counts.total()


@contextmanager
def active() -> Iterator[FakeTensorMode]:
    """While active, nothing is computed."""
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        yield mode


def on_cuda(tensor: Tensor) -> Tensor:
    """A tensor of the same shape, type and layout on the device; to be called while the mode is active."""
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=CUDA)


def moved(twin: nn.Module) -> nn.Module:
    """The network, which must be a copy made outside of the mode, with all its tensors on the device."""
    for module in twin.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = nn.Parameter(on_cuda(parameter), parameter.requires_grad)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = on_cuda(buffer)
    return twin


def started(action: Callable[[], object]) -> Operations:
    """The operations of one call."""
    with Operations() as operations:
        action()
    return operations
