"""Networks between the stages: saved and loaded as safetensors and JSON, nothing unpickled; run and counted alike."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from atopipe.pipeline.engine.stage import Context
from atopipe.pipeline.rundir.directory import RunDirectory
from atopipe.pipeline.system.errors import MissingError
from atopipe.pipeline.system.text import first_line

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor, nn

    from atopipe.ato.groups import Groups
    from atopipe.validate.accuracy import Accuracy

    Network = Callable[[NDArray[np.float32]], NDArray[np.float32]]
    ExactNetwork = Callable[[NDArray[np.float32]], NDArray[np.float64]]


BATCH_SIZE = 64
MOST_CLASSES = 10**6


def load_trained(context: Context) -> "nn.Module":
    """The dense-shaped network of stage train, its masked groups exactly zero."""
    return _filled(context.workspace.new_model(), context.input("train", "weights.safetensors"))


def load_dense(context: Context) -> "nn.Module":
    """The dense network of stage baseline."""
    return _filled(context.workspace.new_model(), context.input("baseline", "weights.safetensors"))


def _filled(model: "nn.Module", weights: Path) -> "nn.Module":
    """The network in evaluation mode with these weights; MissingError where they are not its own."""
    state = _tensors(weights)
    wanted = {name: (tensor.shape, tensor.dtype) for name, tensor in model.state_dict().items()}
    if {name: (tensor.shape, tensor.dtype) for name, tensor in state.items()} != wanted:
        raise MissingError(f"'{weights}' does not hold the weights of the network: {_again(weights)}")
    model.load_state_dict(state)
    return model.eval()


def _tensors(path: Path) -> "dict[str, Tensor]":
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(path)
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise MissingError(f"'{path}' is damaged ({first_line(error)}): {_again(path)}") from error
    broken = [name for name, tensor in tensors.items() if not tensor.isfinite().all()]
    if broken:
        raise MissingError(f"'{path}' has values in '{broken[0]}' that are not finite: {_again(path)}")
    return tensors


def _again(path: Path) -> str:
    return f"run again with --from {path.parent.name}"


def load_shrunk(run: RunDirectory) -> "nn.Module":
    """The small network of stage shrink, of which only the settings and the stage's files are needed."""
    import torch

    from atopipe.ato.removal.structure import Structure, cut_model
    from atopipe.pipeline.engine.start import new_model

    path = run.stages.artifact("shrink", "structure.json")
    described = path.read_text(encoding="utf-8", errors="replace")
    structure = Structure.from_json(described)
    classes = json.loads(described).get("classes")
    if type(classes) is not int or not 1 <= classes <= MOST_CLASSES:
        raise MissingError(f"'{path}' does not say how many classes there are: run again with --from shrink")
    with torch.random.fork_rng(devices=[]):  # the random weights are replaced
        model = new_model(run.config, classes)
    return _filled(cut_model(model, structure), run.stages.artifact("shrink", "weights.safetensors"))


def load_groups(context: Context) -> "Groups":
    """The groups that stage train found."""
    from atopipe.ato.groups import Groups

    return Groups.from_json(context.input("train", "groups.json").read_text(encoding="utf-8", errors="replace"))


def load_mask(context: Context, groups: "Groups") -> "Tensor":
    """The mask that stage train chose, as one flat vector over `groups`."""
    import torch

    path = context.input("train", "masks.safetensors")
    masks = _tensors(path)
    if {name: tuple(mask.shape) for name, mask in masks.items()} != {item.name: (item.size,) for item in groups.sets}:
        raise MissingError(f"'{path}' does not hold the masks of the groups: run again with --from train")
    return torch.cat([masks[item.name] for item in groups.sets])


def accuracy_of(context: Context, network: "Network") -> "Accuracy":
    """Top-1 on the whole validation set."""
    from atopipe.validate.accuracy import measure_accuracy

    def batches() -> "Iterator[tuple[NDArray[np.float32], NDArray[np.int64]]]":
        for images, labels in context.workspace.data.val.batches(BATCH_SIZE, device="cpu"):
            yield images.numpy(), labels.numpy()

    return measure_accuracy(network, batches())
