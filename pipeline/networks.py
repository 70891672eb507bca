"""Networks between the stages: saved and loaded as safetensors and JSON, nothing unpickled; run and counted alike."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from atopipe.pipeline.errors import MissingError
from atopipe.pipeline.files import write_bytes
from atopipe.pipeline.runner import Context

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray
    from torch import Tensor, nn

    from atopipe.ato.groups import Groups
    from atopipe.validate.accuracy import Accuracy

    Network = Callable[[NDArray[np.float32]], NDArray[np.float32]]
    ExactNetwork = Callable[[NDArray[np.float32]], NDArray[np.float64]]

BATCH_SIZE = 64


def save_tensors(path: Path, tensors: "Mapping[str, Tensor]") -> None:
    """Writes copies of the tensors: safetensors refuses those that share memory, as tied weights do."""
    import torch
    from safetensors.torch import save

    copies = {name: tensor.cpu().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()}
    write_bytes(path, save(copies))


def load_trained(context: Context) -> "nn.Module":
    """The dense-shaped network of stage train, its masked groups exactly zero."""
    from safetensors.torch import load_file

    model = context.workspace.new_model()
    model.load_state_dict(load_file(context.input("train", "weights.safetensors")))
    return model.eval()


def load_dense(context: Context) -> "nn.Module":
    """The dense network of stage baseline."""
    from safetensors.torch import load_file

    model = context.workspace.new_model()
    model.load_state_dict(load_file(context.input("baseline", "weights.safetensors")))
    return model.eval()


def load_shrunk(context: Context) -> "nn.Module":
    """The small network of stage shrink."""
    from safetensors.torch import load_file

    from atopipe.ato.structure import Structure, cut_model

    structure = Structure.from_json(context.input("shrink", "structure.json").read_text(encoding="utf-8"))
    model = cut_model(context.workspace.new_model(), structure)
    model.load_state_dict(load_file(context.input("shrink", "weights.safetensors")))
    return model.eval()


def load_mask(context: Context, groups: "Groups") -> "Tensor":
    """The mask that stage train chose, as one flat vector over `groups`."""
    import torch
    from safetensors.torch import load_file

    masks = load_file(context.input("train", "masks.safetensors"))
    if {name: len(mask) for name, mask in masks.items()} != {item.name: item.size for item in groups.sets}:
        raise MissingError("stages/train/masks.safetensors belongs to another network: run again with --force")
    return torch.cat([masks[item.name] for item in groups.sets])


def as_function(model: "nn.Module", device: "torch.device") -> "Network":
    """A torch network as a function of arrays, as ONNX Runtime's sessions are."""
    import torch

    model.to(device)

    @torch.inference_mode()
    def network(images: "NDArray[np.float32]") -> "NDArray[np.float32]":
        logits: torch.Tensor = model(torch.from_numpy(images).to(device))
        return logits.cpu().numpy()

    return network


def in_float64(model: "nn.Module") -> "ExactNetwork":
    """The same network in float64 on the CPU, as a function of float32 images: its logits are the true ones."""
    import copy

    import torch

    exact = copy.deepcopy(model).cpu().double()

    @torch.inference_mode()
    def network(images: "NDArray[np.float32]") -> "NDArray[np.float64]":
        logits: torch.Tensor = exact(torch.from_numpy(images).double())
        return logits.numpy()

    return network


def accuracy_of(context: Context, network: "Network") -> "Accuracy":
    """Top-1 on the whole validation set."""
    from atopipe.validate.accuracy import measure_accuracy

    def batches() -> "Iterator[tuple[NDArray[np.float32], NDArray[np.int64]]]":
        for images, labels in context.workspace.data.val.batches(BATCH_SIZE, device="cpu"):
            yield images.numpy(), labels.numpy()

    return measure_accuracy(network, batches())
