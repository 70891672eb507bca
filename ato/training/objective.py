"""What the weights are trained for."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from atopipe.ato.execution import PLAIN, Execution
from atopipe.ato.search.controller_search import distillation_loss

Loss = Callable[[Tensor, Tensor], Tensor]  # logits [B, K] and labels [B] -> a scalar, the mean over the batch


class Objective(Protocol):
    """Gives the loss of a batch."""

    def on(self, images: Tensor) -> Loss:
        """The loss of logits and labels for these images [B, C, H, W], as the network sees them; called once a step."""
        ...


@dataclass(frozen=True)
class CrossEntropy:
    """Cross-entropy against labels, of which the part `label_smoothing` is spread over all classes."""

    label_smoothing: float = 0.0

    def on(self, images: Tensor) -> Loss:
        """The same whatever the images."""
        return partial(cross_entropy, label_smoothing=self.label_smoothing)


@dataclass(frozen=True, eq=False)
class Distillation:
    """(1 - weight) * base + weight * T^2 * KL(teacher || student) at temperature T (Hinton et al. 2015).

    The teacher sees the very images that the student sees, mixed ones included; it is frozen, in evaluation mode, and
    run like the student (`execution`). It is no part of a run's state: give the same one to a run that is taken up
    again, and to every process of a job.
    """

    base: Objective
    teacher: nn.Module
    weight: float
    temperature: float
    execution: Execution = PLAIN

    def __post_init__(self) -> None:
        self.teacher.eval().requires_grad_(False)
        self.teacher.to(memory_format=self.execution.memory_format)

    def on(self, images: Tensor) -> Loss:
        """The teacher runs once, however many labels a mixed batch has."""
        base = self.base.on(images)
        with torch.no_grad():
            wanted = self.execution.logits(self.teacher, images)

        def loss(logits: Tensor, labels: Tensor) -> Tensor:
            hints = distillation_loss(logits, wanted, self.temperature)
            return (1 - self.weight) * base(logits, labels) + self.weight * hints

        return loss
