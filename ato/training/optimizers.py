"""Optimisers for the weights, and their state carried over to a network that was cut."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

from atopipe.ato.recipe import WeightSettings
from atopipe.ato.removal.structure import select
from atopipe.ato.snapshot import laid_out


def make_optimizer(model: nn.Module, settings: WeightSettings) -> Optimizer:
    """The optimiser of a recipe; vectors (norm layers, biases) are not decayed."""
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() <= 1]
    groups = [{"params": matrices, "weight_decay": settings.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    if settings.optimizer == "sgd":
        return SGD(
            groups, lr=settings.learning_rate, momentum=settings.momentum, nesterov=settings.momentum > 0, fused=True
        )
    return AdamW(groups, lr=settings.learning_rate, fused=True)


def set_learning_rate(optimizer: Optimizer, value: float) -> None:
    """Give every parameter group the same learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = value


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
