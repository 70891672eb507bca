"""Networks between the stages: saved and loaded as safetensors and JSON, nothing unpickled; run and counted alike."""

import json
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from atopipe.pipeline.engine.stage import Context
from atopipe.pipeline.rundir.directory import RunDirectory

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor, nn

    from atopipe.ato.groups import Groups
    from atopipe.validate.accuracy import Accuracy

    Network = Callable[[NDArray[np.float32]], NDArray[np.float32]]
    ExactNetwork = Callable[[NDArray[np.float32]], NDArray[np.float64]]


BATCH_SIZE = 64


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


def load_shrunk(run: RunDirectory) -> "nn.Module":
    """The small network of stage shrink, of which only the settings and the stage's files are needed."""
    import torch
    from safetensors.torch import load_file

    from atopipe.ato.removal.structure import Structure, cut_model
    from atopipe.pipeline.engine.start import new_model

    described = run.stages.artifact("shrink", "structure.json").read_text(encoding="utf-8")
    with torch.random.fork_rng(devices=[]):  # the random weights are replaced
        model = new_model(run.config, json.loads(described)["classes"])
    model = cut_model(model, Structure.from_json(described))
    model.load_state_dict(load_file(run.stages.artifact("shrink", "weights.safetensors")))
    return model.eval()


def load_groups(context: Context) -> "Groups":
    """The groups that stage train found."""
    from atopipe.ato.groups import Groups

    return Groups.from_json(context.input("train", "groups.json").read_text(encoding="utf-8"))


def load_mask(context: Context, groups: "Groups") -> "Tensor":
    """The mask that stage train chose, as one flat vector over `groups`."""
    import torch
    from safetensors.torch import load_file

    masks = load_file(context.input("train", "masks.safetensors"))
    return torch.cat([masks[item.name] for item in groups.sets])


def accuracy_of(context: Context, network: "Network") -> "Accuracy":
    """Top-1 on the whole validation set."""
    from atopipe.validate.accuracy import measure_accuracy

    def batches() -> "Iterator[tuple[NDArray[np.float32], NDArray[np.int64]]]":
        for images, labels in context.workspace.data.val.batches(BATCH_SIZE, device="cpu"):
            yield images.numpy(), labels.numpy()

    return measure_accuracy(network, batches())
