"""Optimisers for the weights, and their state carried over to a network that was cut."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

from atopipe.ato.recipe import WeightSettings
from atopipe.ato.removal.structure import select
from atopipe.ato.snapshot import laid_out


def make_optimizer(model: nn.Module, settings: WeightSettings, head: str | None = None) -> Optimizer:
    """The optimiser of a recipe; vectors (norm layers, biases) are not decayed.

    `head`: the layer that learns at `settings.head_rate` times the rate of the others.
    """
    own = [] if head is None or settings.head_rate == 1 else list(model.get_submodule(head).parameters())
    heads = {id(parameter) for parameter in own}
    body = [p for p in model.parameters() if id(p) not in heads]
    groups = [
        {"params": chosen, "weight_decay": settings.weight_decay if matrices else 0.0, "multiple": multiple}
        for part, multiple in ((body, 1.0), (own, settings.head_rate))
        for matrices in (True, False)
        if (chosen := [p for p in part if (p.dim() > 1) == matrices]) or part is body
    ]
    if settings.optimizer == "sgd":
        return SGD(
            groups, lr=settings.learning_rate, momentum=settings.momentum, nesterov=settings.momentum > 0, fused=True
        )
    return AdamW(groups, lr=settings.learning_rate, fused=True)


def set_learning_rate(optimizer: Optimizer, value: float) -> None:
    """Give every parameter group the learning rate, or its multiple of it."""
    for group in optimizer.param_groups:
        group["lr"] = value * group["multiple"]


@torch.no_grad()
def carry_over(
    old: Optimizer,
    new: Optimizer,
    before: Mapping[str, Tensor],
    after: nn.Module,
    cuts: Mapping[str, Mapping[int, Tensor]],
) -> None:
    """Copy the optimiser state of the parameters `before` to those of `after` by name, cut as the parameters were.

    `after` must have its final memory layout.
    """
    for name, parameter in after.named_parameters():
        state = old.state.get(before[name], {})
        shape = before[name].shape
        new.state[parameter] = {
            key: laid_out(select(value, cuts.get(name, {})), parameter) if value.shape == shape else value
            for key, value in state.items()
        }
