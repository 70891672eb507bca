"""What every network must do with an image before it is trained: take three channels, give a logit for each class."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn

from atopipe.pipeline.models.build import CLASS_ARGUMENTS, ModelError

OTHER_CHANNELS = (1, 2, 4, 6)
CHANNEL_ARGUMENTS = "in_chans=3, in_channels=3, ..., with --model-args where it takes one"


def require_logits(model: nn.Module, who: str, example: Tensor, classes: int) -> None:
    """Raises ModelError where `model` gives another number of logits than classes, or takes no RGB images.

    `example` is an image [1, 3, H, W]. Other outputs than a matrix, and other failures, are left to those who read the
    network's graph. The model's state and torch's random state stay as they were.
    """
    output = _output(model, example)
    if isinstance(output, Tensor) and output.dim() == 2 and output.shape[1] != classes:
        given = output.shape[1]
        raise ModelError(
            f"{who} gives {given} {'logit' if given == 1 else 'logits'} for {classes} classes: let it take the number "
            f"of classes as an argument ({', '.join(CLASS_ARGUMENTS[:3])}, ...), or set it with --model-args"
        )
    channels = _channels(model, example) if output is None else None
    if channels is not None:
        raise ModelError(
            f"{who} takes images of {channels} {'channel' if channels == 1 else 'channels'}, and every image is given "
            f"as RGB: build it for 3 channels ({CHANNEL_ARGUMENTS})"
        )


def _output(model: nn.Module, images: Tensor) -> Any:
    """What comes out for the images; None where the network does not take them."""
    with in_evaluation(model), torch.random.fork_rng(devices=[]), torch.no_grad(), suppress(Exception):
        return model(images)
    return None


def _channels(model: nn.Module, example: Tensor) -> int | None:
    """The number of channels that the network takes instead of three, if it takes one."""
    others = ((count, example[:, :1].expand(-1, count, -1, -1)) for count in OTHER_CHANNELS)
    return next((count for count, images in others if _output(model, images) is not None), None)


@contextmanager
def in_evaluation(model: nn.Module) -> Iterator[None]:
    """While active; afterwards every module is in the mode in which it was."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
