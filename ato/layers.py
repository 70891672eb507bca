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


def blocks(module: nn.Module) -> int:
    """Number of blocks among which a grouped convolution divides its channels; 1 for everything else."""
    return module.groups if isinstance(module, _ConvNd) and not is_depthwise(module) else 1


def channels(module: nn.Module, axis: Axis) -> int:
    """Number of channels of a supported layer along an axis."""
    if isinstance(module, _ConvNd):
        return module.out_channels if axis == "out" else module.in_channels
    if isinstance(module, nn.Linear):
        return module.out_features if axis == "out" else module.in_features
    if isinstance(module, nn.PReLU):
        return module.num_parameters
    if isinstance(module, CHANNEL_NORMS):
        return module.num_features
    raise TypeError(f"{type(module).__name__} has no known channel axis")


def dims(module: nn.Module, axis: Axis) -> dict[str, int]:
    """Names of the layer's own tensors that extend along `axis`, each with its dimension; absent tensors left out."""
    if isinstance(module, MATRIX_LAYERS):
        transposed = isinstance(module, _ConvTransposeNd) and not is_depthwise(module)
        wanted = {"weight": int(transposed), "bias": 0} if axis == "out" else {"weight": int(not transposed)}
    else:
        wanted = {"weight": 0, "bias": 0, "running_mean": 0, "running_var": 0} if axis == "out" else {}
    return {name: dim for name, dim in wanted.items() if isinstance(getattr(module, name, None), Tensor)}


def computed(module: nn.Module) -> str | None:
    """The first of those tensors that the layer computes from others, so that nothing can be cut from it; None if none.

    A parametrization does, and so do the older hooks of `torch.nn.utils`.
    """
    own = {name for name, _ in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))}
    return next((name for axis in AXES for name in dims(module, axis) if name not in own), None)


def channel_dim(module: nn.Module) -> int:
    """The dimension of the layer's output that counts its channels."""
    return -1 if isinstance(module, nn.Linear) else 1


def refresh_attributes(module: nn.Module) -> None:
    """Make a layer's size attributes agree with its tensors after they were cut."""
    if isinstance(module, _ConvNd):
        first, second = module.weight.shape[:2]
        if is_depthwise(module):
            module.groups = module.in_channels = module.out_channels = first
        elif isinstance(module, _ConvTransposeNd):
            module.in_channels, module.out_channels = first, second * module.groups
        else:
            module.out_channels, module.in_channels = first, second * module.groups
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, nn.PReLU):
        module.num_parameters = module.weight.shape[0]
    elif isinstance(module, CHANNEL_NORMS):
        tensor = module.weight if module.weight is not None else module.running_mean
        module.num_features = len(tensor) if tensor is not None else module.num_features
