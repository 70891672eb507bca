"""Which tensors of a layer extend along its output and its input channels."""

from typing import Literal

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.modules.instancenorm import _InstanceNorm

Axis = Literal["out", "in"]
AXES: tuple[Axis, ...] = ("out", "in")

MATRIX_LAYERS = (_ConvNd, nn.Linear)
CHANNEL_NORMS = (_BatchNorm, _InstanceNorm)
PRUNABLE = (*MATRIX_LAYERS, *CHANNEL_NORMS, nn.PReLU)


def is_elementwise(module: nn.Module) -> bool:
    """A PReLU with one slope for all channels: it has a parameter, but no channel axis."""
    return isinstance(module, nn.PReLU) and module.num_parameters == 1


def is_depthwise(module: nn.Module) -> bool:
    """A convolution in which every channel is filtered alone: its one channel axis is "out"."""
    return isinstance(module, _ConvNd) and 1 < module.groups == module.in_channels == module.out_channels


def is_channel_wise(module: nn.Module) -> bool:
    """A layer that gives every channel back where it read it: norms, PReLU and depthwise convolutions."""
    return is_depthwise(module) or not isinstance(module, MATRIX_LAYERS)


def refusal(module: nn.Module) -> str | None:
    """Why a layer of a known type cannot be cut; None where it can."""
    if isinstance(module, _BatchNorm) and not module.affine:
        return "it has no scale and shift that could be set to zero"
    if any(hasattr(module, name) and name not in module._parameters for name in ("weight", "bias")):
        return "its weights are computed from other parameters"
    if is_elementwise(module):
        return "it has one slope for all channels"
    return None


def blocks(module: nn.Module) -> int:
    """Number of blocks among which a grouped convolution divides its channels; 1 for everything else."""
    return module.groups if isinstance(module, _ConvNd) and not is_depthwise(module) else 1


def channels(module: nn.Module, axis: Axis) -> int:
    """Number of channels of a supported layer along an axis."""
    return int(getattr(module, _size_names(module, axis)[-1]))


def dims(module: nn.Module, axis: Axis) -> dict[str, int]:
    """Names of the layer's own tensors that extend along `axis`, each with its dimension; absent tensors left out."""
    if isinstance(module, MATRIX_LAYERS):
        transposed = isinstance(module, _ConvTransposeNd) and not is_depthwise(module)
        wanted = {"weight": int(transposed), "bias": 0} if axis == "out" else {"weight": int(not transposed)}
    else:
        wanted = {"weight": 0, "bias": 0, "running_mean": 0, "running_var": 0} if axis == "out" else {}
    return {name: dim for name, dim in wanted.items() if isinstance(getattr(module, name, None), Tensor)}


def channel_dim(module: nn.Module) -> int:
    """The dimension of the layer's output that counts its channels."""
    return -1 if isinstance(module, nn.Linear) else 1


def resize(module: nn.Module, axis: Axis, count: int) -> None:
    """Make a layer's size attributes tell that `count` channels are left along an axis."""
    for name in _size_names(module, axis):
        setattr(module, name, count)


def _size_names(module: nn.Module, axis: Axis) -> tuple[str, ...]:
    if is_depthwise(module):
        return ("groups", "in_channels", "out_channels")
    if isinstance(module, nn.PReLU):
        return ("num_parameters",)
    if isinstance(module, CHANNEL_NORMS):
        return ("num_features",)
    return (f"{axis}_features" if isinstance(module, nn.Linear) else f"{axis}_channels",)
