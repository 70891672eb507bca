"""The weights' side of a run: the network, its optimiser and its moving average."""

import copy

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

from atopipe.ato.execution import Execution
from atopipe.ato.recipe import WeightSettings
from atopipe.ato.removal.structure import Structure, cut_model, cut_tensors
from atopipe.ato.snapshot import Snapshot, joined, of_optimizer, restore_optimizer
from atopipe.ato.training.average import MovingAverage
from atopipe.ato.training.objective import CrossEntropy, Objective
from atopipe.ato.training.optimizers import carry_over, make_optimizer, set_learning_rate


class WeightTrainer:
    """All state of the weights' training; `step` moves them, `average_in` follows when the step is complete."""

    def __init__(
        self,
        model: nn.Module,
        settings: WeightSettings,
        execution: Execution,
        generator: torch.Generator,
        objective: Objective | None = None,
        head: str | None = None,
    ) -> None:
        self.model, self.settings, self.execution, self.generator = model, settings, execution, generator
        self.objective, self.head = objective or CrossEntropy(settings.label_smoothing), head
        self.forward = execution.prepare(model)
        self.optimizer = make_optimizer(model, settings, head)
        self.average = MovingAverage(model, settings.ema) if settings.ema > 0 else None

    @property
    def delivered(self) -> nn.Module:
        """The network that a user gets: the moving average of the weights, where there is one."""
        return self.model if self.average is None else self.average.module

    def step(self, images: Tensor, labels: Tensor, rate: float) -> tuple[Tensor, Tensor]:
        """One step on a batch; loss and number of correct predictions as tensors, without waiting for them."""
        self.model.train()
        set_learning_rate(self.optimizer, rate)
        share, order = mixing(len(images), self.settings.mixup, self.generator)
        order = order.to(images.device, non_blocking=True)
        mixed = mix(images, share, order)
        loss_of = self.objective.on(mixed)
        logits = self.execution.logits(self.forward, mixed)
        loss = share * loss_of(logits, labels)
        if share < 1:
            loss = loss + (1 - share) * loss_of(logits, labels[order])
        self.optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        if self.settings.clip_norm > 0:
            clip_grad_norm_(self.model.parameters(), self.settings.clip_norm)
        self.optimizer.step()
        return loss.detach(), (logits.detach().argmax(1) == labels).sum()

    def average_in(self) -> None:
        """Let the moving average follow, once all that a step does to the weights is done."""
        if self.average is not None:
            self.average.follow(self.model)

    def cut(self, structure: Structure) -> None:
        """Go on with the small network; moments and average carry over. The full-size network is not changed."""
        cuts, full, before = cut_tensors(self.model, structure), self.model, self.optimizer
        self.model = cut_model(copy.deepcopy(full), structure)
        self.forward = self.execution.prepare(self.model)
        self.optimizer = make_optimizer(self.model, self.settings, self.head)
        carry_over(before, self.optimizer, dict(full.named_parameters()), self.model, cuts)
        if self.average is not None:
            small = cut_model(self.average.module, structure).to(memory_format=self.execution.memory_format)
            self.average = MovingAverage(small, self.settings.ema, self.average.steps)

    def snapshot(self) -> Snapshot:
        """Weights, buffers, moments and average as they are now."""
        parts = {
            "model": Snapshot(self.model.state_dict(), {}),
            "optimizer": of_optimizer(self.optimizer),
        }
        if self.average is not None:
            parts["average"] = self.average.snapshot()
        return joined(**parts)

    def restore(self, snapshot: Snapshot) -> None:
        """Load a snapshot of a network of the same shapes."""
        self.model.load_state_dict(snapshot.part("model").tensors)
        restore_optimizer(self.optimizer, snapshot.part("optimizer"))
        if self.average is not None:
            self.average.restore(snapshot.part("average").tensors)


def mixing(count: int, alpha: float, generator: torch.Generator) -> tuple[float, Tensor]:
    """How a batch of `count` is mixed (mixup, Zhang et al. 2018): the share ~ Beta(alpha, alpha) of the images
    themselves, and the order [count] of their partners; a share of 1 for alpha 0."""
    if alpha == 0:
        return 1.0, torch.arange(count)
    seed = int(torch.randint(2**62, (), generator=generator))
    return float(np.random.default_rng(seed).beta(alpha, alpha)), torch.randperm(count, generator=generator)


def mix(images: Tensor, share: float, order: Tensor) -> Tensor:
    """share * images + (1 - share) * partners."""
    return images if share == 1 else images.lerp(images[order.to(images.device)], 1 - share)
