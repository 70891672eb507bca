"""The networks that stages leave on disk, as modules again: safetensors and JSON only, nothing is unpickled."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from atopipe.pipeline.errors import MissingError
from atopipe.pipeline.run_directory import write_bytes
from atopipe.pipeline.runner import Context

if TYPE_CHECKING:
    from torch import Tensor, nn

    from atopipe.ato.groups import Groups


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
