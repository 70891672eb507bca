"""The classifier of a network, found by what it depends on and not by its name."""

from collections.abc import Callable

import torch
from torch import nn

Build = Callable[[int], nn.Module]  # number of classes -> network


def head_tensors(build: Build, classes: int) -> frozenset[str]:
    """The names of the tensors that are there, or have their shape, because there are so many classes.

    The network is built for one class more, and compared. Empty where the builder pays no attention to the number, or
    cannot build another one. Torch's global random state stays as it was.
    """
    ours = _shapes(build, classes)
    try:
        others = _shapes(build, classes + 1)
    except Exception:  # user code may raise anything
        return frozenset()
    return frozenset(name for name, shape in ours.items() if others.get(name) != shape)


def _shapes(build: Build, classes: int) -> dict[str, torch.Size]:
    """Of a network without values where it can be built so: initialising a large one takes seconds."""
    with torch.random.fork_rng(devices=[]):
        try:
            with torch.device("meta"):
                model = build(classes)
        except Exception:  # user code may read the values of its tensors
            model = build(classes)
    return {name: tensor.shape for name, tensor in model.state_dict().items()}
