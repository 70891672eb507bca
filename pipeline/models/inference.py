"""Networks as functions of arrays, and their weights as files: nothing pickled."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from atopipe.pipeline.system.files import write_bytes

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray
    from torch import Tensor, nn

    Network = Callable[[NDArray[np.float32]], NDArray[np.float32]]
    ExactNetwork = Callable[[NDArray[np.float32]], NDArray[np.float64]]


def save_tensors(path: Path, tensors: "Mapping[str, Tensor]") -> None:
    """Writes copies of the tensors: safetensors refuses those that share memory, as tied weights do."""
    import torch
    from safetensors.torch import save

    copies = {name: tensor.cpu().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()}
    write_bytes(path, save(copies))


@contextmanager
def whole_float32() -> Iterator[None]:
    """While active, torch computes convolutions and products of float32 as IEEE 754 has it.

    cuDNN's convolutions otherwise round to TF32 (10 bits) by default, and a user's code may have allowed that, or
    bfloat16 on the CPU, for everything: enough to change answers, which a comparison would then blame on the export.
    """
    import torch

    backends: Any = torch.backends  # these parts of it have no types
    parts = (backends.cudnn.conv, backends.cuda.matmul, backends.mkldnn.conv, backends.mkldnn.matmul)
    before = [part.fp32_precision for part in parts]
    try:
        for part in parts:
            part.fp32_precision = "ieee"
        yield
    finally:
        for part, precision in zip(parts, before, strict=True):
            part.fp32_precision = precision


def as_function(model: "nn.Module", device: "torch.device") -> "Network":
    """A torch network as a function of arrays in whole float32, as ONNX Runtime's sessions are."""
    import torch

    model.to(device)

    @torch.inference_mode()
    def network(images: "NDArray[np.float32]") -> "NDArray[np.float32]":
        with whole_float32():
            logits: torch.Tensor = model(torch.from_numpy(images).to(device))
            return logits.cpu().numpy()

    return network


def in_float64(model: "nn.Module") -> "ExactNetwork":
    """The same network in float64 on the CPU, as a function of float32 images: its logits are the true ones."""
    import copy

    import torch

    exact = copy.deepcopy(model).cpu().double().train(model.training)  # some forget their mode when copied

    @torch.inference_mode()
    def network(images: "NDArray[np.float32]") -> "NDArray[np.float64]":
        logits: torch.Tensor = exact(torch.from_numpy(images).double())
        return logits.numpy()

    return network
