"""What every network must do with an image before it is trained: take three channels, give a logit for each class."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn

from atopipe.pipeline.models.build import CLASS_ARGUMENTS, ModelError
from atopipe.pipeline.system.text import reason

TOGETHER = 4  # images of a training step that is tried
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


def require_trainable(model: nn.Module, who: str, example: Tensor, classes: int) -> None:
    """Raises ModelError unless `model` returns logits in training mode too, through which its parameters get gradients.

    A copy goes through one step forward and back on the image [1, 3, H, W]; torch's random state stays as it was.
    """
    broken = [name for name, parameter in model.named_parameters() if not parameter.detach().isfinite().all()]
    if broken:
        raise ModelError(f"{who} starts with values that are not finite numbers in '{broken[0]}': initialise it")
    trained = copy.deepcopy(model).train()
    with torch.random.fork_rng(devices=[]):
        try:
            output = trained(torch.cat([example] * TOGETHER))
        except Exception as error:  # whatever the network's code raises
            raise ModelError(f"{who} fails in training mode: {reason(error)}; repair its forward()") from error
        if not isinstance(output, Tensor) or output.shape != (TOGETHER, classes):
            kind = f"a tensor {list(output.shape)}" if isinstance(output, Tensor) else f"a {type(output).__name__}"
            raise ModelError(f"{who} returns {kind} in training mode: return the logits [images, {classes}] there too")
        if not output.requires_grad:
            raise ModelError(f"{who} gives logits without gradients: {_gradients_off(trained)}")
        try:
            output.sum().backward()  # type: ignore[no-untyped-call]
        except Exception as error:
            raise ModelError(f"{who} fails in the backward pass: {reason(error)}; repair its forward()") from error
    _require_same_layers(trained, who, example)


def _require_same_layers(model: nn.Module, who: str, example: Tensor) -> None:
    """Raises ModelError where none of the layers that are trained is evaluated, as in a copy with averaged weights."""
    ran: dict[bool, set[str]] = {True: set(), False: set()}
    for name, module in model.named_modules():
        if any(True for _ in module.parameters(recurse=False)):
            module.register_forward_pre_hook(lambda _, args, name=name: ran[model.training].add(name))
    with torch.random.fork_rng(devices=[]), torch.no_grad(), suppress(Exception):
        for training in (True, False):
            model.train(training)
            model(torch.cat([example] * TOGETHER))
    if ran[True] and ran[False] and ran[True].isdisjoint(ran[False]):
        trained, evaluated = (min(ran[training]) for training in (True, False))
        raise ModelError(
            f"{who} trains other layers ('{trained}') than it evaluates ('{evaluated}'): give the network alone, "
            "without its copy of averaged weights"
        )


def require_copyable(model: nn.Module, who: str) -> None:
    """Raises ModelError where `model` cannot be copied, as everything that tries something out on it does."""
    try:
        copy.deepcopy(model)
    except Exception as error:  # locks, generators and sparse parameters say so in many ways
        raise ModelError(
            f"{who} cannot be copied ({reason(error)}): keep dense tensors and plain values in its attributes"
        ) from error


def _gradients_off(model: nn.Module) -> str:
    """What may have switched them off, as a remedy."""
    if not torch.is_grad_enabled():
        return "take torch.set_grad_enabled(False) out of its code"
    if not any(parameter.requires_grad for parameter in model.parameters()):
        return "set requires_grad to True for the parameters that are to be trained"
    return "take no_grad, detach and numpy out of its forward()"


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
