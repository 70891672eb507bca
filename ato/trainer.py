"""Train the weights and the controller together, and remove the masked groups on the way (ATO, algorithm 1)."""

import copy
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from atopipe.ato import projection
from atopipe.ato.groups import Groups
from atopipe.ato.masking import group_norms, group_products, scale_groups
from atopipe.ato.optimizers import carry_over, make_optimizer, set_learning_rate
from atopipe.ato.recipe import Recipe
from atopipe.ato.schedule import Phase, Schedule, learning_rate_factor
from atopipe.ato.search import DivergedError, Search
from atopipe.ato.selection import Budget
from atopipe.ato.shrink import expand
from atopipe.ato.structure import Structure, cut_model, cut_tensors, structure_of

REPORT_EVERY = 10


class Batches(Protocol):
    """The batches of one epoch: images [B, C, H, W] float32 and labels [B] int64, on the model's device."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]: ...


@dataclass(frozen=True)
class Progress:
    """Where the run is: `step` of `steps` done; `loss` averaged over the last few steps."""

    step: int
    steps: int
    epoch: int
    epochs: int
    phase: str
    loss: float


@dataclass(frozen=True)
class EpochRecord:
    """One finished epoch. `flops_kept`: of the mask as it stands, a fraction of dense; accuracies are fractions."""

    epoch: int
    epochs: int
    phase: str
    loss: float
    train_accuracy: float
    val_accuracy: float
    flops_kept: float
    learning_rate: float
    seconds: float


@dataclass(frozen=True)
class Trained:
    """The network at full width with its masked groups exactly zero, its mask [G] (1 keep), and how it got there."""

    model: nn.Module
    mask: Tensor
    history: tuple[EpochRecord, ...]


class Trainer:
    """All state of a training run; one call of `step` per batch moves it forward."""

    def __init__(
        self,
        model: nn.Module,
        groups: Groups,
        budgets: Sequence[Budget],
        recipe: Recipe,
        steps: int,
        generator: torch.Generator,
    ) -> None:
        self.model, self.groups, self.recipe = model, groups, recipe
        self.schedule = Schedule.of(recipe.phases, steps)
        self.controller_steps = self.schedule.controller_steps(recipe.controller.every)
        device = next(model.parameters()).device
        self.search = Search(groups, budgets, recipe.controller, recipe.align, device, generator)
        self.optimizer = make_optimizer(model, recipe.weights)
        self.finished_steps = 0
        self.frozen_mask: Tensor | None = None
        self.full: tuple[nn.Module, Structure] | None = None  # the network before it was cut, and the cut

    @property
    def phase(self) -> Phase:
        """The phase of the next step."""
        return self.schedule.phase(self.finished_steps)

    def step(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """One step on a batch; returns loss and number of correct predictions as tensors, without waiting for them."""
        result = self._weight_step(images, labels)
        if self.finished_steps in self.controller_steps:
            self.search.step(self.model, images, labels, self.schedule.search_progress(self.finished_steps + 1))
        self._advance()
        return result

    def _advance(self) -> None:
        """Count the step; freeze the mask where the search ends, cut the network where its masked groups are zero."""
        self.finished_steps += 1
        if self.finished_steps == self.schedule.search_end:
            self.frozen_mask = self.search.best_mask()
        if self.finished_steps == self.schedule.decay_end and self.recipe.live_shrink:
            self._cut()

    def flops_kept(self) -> float:
        """The first budget's cost at the frozen mask or, before, at the likely one; a fraction of dense."""
        if self.phase is Phase.DENSE:
            return 1.0
        mask = self.search.likely_mask() if self.frozen_mask is None else self.frozen_mask
        return float(self.search.budgets[0].cost.ratio(self.groups.widths(mask.cpu())))

    def learning_rate(self) -> float:
        """The weights' learning rate of the next step."""
        settings = self.recipe.weights
        return settings.learning_rate * learning_rate_factor(self.finished_steps, self.schedule.total, settings.warmup)

    def trained_model(self) -> tuple[nn.Module, Tensor]:
        """The network at full width, masked groups exactly zero, and its mask; after the decay phase only."""
        if self.finished_steps < self.schedule.decay_end:
            raise RuntimeError("the masked groups are not zero before the decay phase has ended")
        if self.full is None:
            return self.model, self._mask()
        model, structure = self.full
        expand(self.model, model, structure)
        return model, self._mask()

    def _mask(self) -> Tensor:
        if self.frozen_mask is None:
            raise RuntimeError("there is no mask before the search has ended")
        return self.frozen_mask

    def _weight_step(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        self.model.train()
        rate = self.learning_rate()
        set_learning_rate(self.optimizer, rate)
        logits = self.model(images)
        loss = cross_entropy(logits, labels, label_smoothing=self.recipe.weights.label_smoothing)
        self.optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        removed, step_lambda = self._projected()
        epsilon = self.recipe.projection.half_space
        before = copy.deepcopy(self.model) if removed is not None and epsilon is not None else None
        self.optimizer.step()
        if removed is not None:
            self._project(removed, step_lambda * rate, before)
        return loss.detach(), (logits.detach().argmax(1) == labels).sum()

    @torch.no_grad()
    def _projected(self) -> tuple[Tensor | None, float]:
        """Which groups the projection moves in this step (bool [G], or none), and its lambda."""
        settings = self.recipe.projection
        if self.frozen_mask is not None and self.full is None:
            return self.frozen_mask < 0.5, settings.decay_lambda
        if self.phase is Phase.SEARCH and settings.search_lambda > 0:
            return self.search.likely_mask() < 0.5, settings.search_lambda
        return None, 0.0

    @torch.no_grad()
    def _project(self, removed: Tensor, step: float, before: nn.Module | None) -> None:
        counts = [int(count) for count in self.groups.widths(removed.cpu().double())]
        norms = group_norms(self.model, self.groups)
        removed = removed.to(norms.device)
        shares = torch.tensor(projection.set_shares(counts)).repeat_interleave(torch.tensor(self.groups.sizes))
        steps = step * shares.to(norms)
        if self.frozen_mask is not None:
            left = max(self.schedule.decay_end - self.finished_steps, 1)  # once zero, held at zero
            steps = steps.maximum(projection.decay_step(norms, left))
        factors = projection.proximal_factor(norms, steps)
        if before is not None and self.recipe.projection.half_space is not None:
            inner = group_products(self.model, before, self.groups) * factors
            factors *= projection.half_space_factor(
                group_norms(before, self.groups), inner, self.recipe.projection.half_space
            )
        scale_groups(self.model, self.groups, torch.where(removed, factors, 1.0))

    def _cut(self) -> None:
        """Go on with the small network: zero groups can never matter again, so keeping them would only cost time."""
        mask = self._mask()
        structure = structure_of(self.model, self.groups, mask)
        cuts = cut_tensors(self.model, structure)
        before = dict(self.model.named_parameters())
        self.full = (copy.deepcopy(self.model), structure)
        cut_model(self.model, structure)
        optimizer = make_optimizer(self.model, self.recipe.weights)
        carry_over(self.optimizer, optimizer, before, self.model, cuts)
        self.optimizer = optimizer


def train(
    model: nn.Module,
    groups: Groups,
    budgets: Sequence[Budget],
    *,
    train_batches: Batches,
    val_batches: Batches,
    recipe: Recipe,
    generator: torch.Generator,
    report: Callable[[Progress | EpochRecord], None],
) -> Trained:
    """Train `model` and prune it until every budget holds; every epoch is reported.

    `model` is consumed: use the one returned. Raises BudgetError before the first step when a target cannot be reached,
    DivergedError when the loss is no longer finite. Dropout and the like draw from torch's global generator.
    """
    trainer = Trainer(model, groups, budgets, recipe, recipe.epochs * len(train_batches), generator)
    history = []
    for epoch in range(1, recipe.epochs + 1):
        record = _train_epoch(trainer, epoch, train_batches, val_batches, report)
        history.append(record)
        report(record)
    trained, mask = trainer.trained_model()
    return Trained(trained.eval(), mask, tuple(history))


def _train_epoch(
    trainer: Trainer,
    epoch: int,
    train_batches: Batches,
    val_batches: Batches,
    report: Callable[[Progress | EpochRecord], None],
) -> EpochRecord:
    start, phase, epochs = time.perf_counter(), trainer.phase, trainer.recipe.epochs
    losses, correct, seen = [], [], 0
    for images, labels in train_batches:
        rate = trainer.learning_rate()
        loss, hits = trainer.step(images, labels)
        losses.append(loss)
        correct.append(hits)
        seen += len(labels)
        if trainer.finished_steps % REPORT_EVERY == 0:
            recent = _finite(float(torch.stack(losses[-REPORT_EVERY:]).mean()), trainer.finished_steps)
            report(Progress(trainer.finished_steps, trainer.schedule.total, epoch, epochs, trainer.phase, recent))
    loss_mean = _finite(float(torch.stack(losses).mean()), trainer.finished_steps)
    return EpochRecord(
        epoch=epoch,
        epochs=epochs,
        phase=phase,
        loss=loss_mean,
        train_accuracy=float(torch.stack(correct).sum()) / seen,
        val_accuracy=accuracy(trainer.model, val_batches),
        flops_kept=trainer.flops_kept(),
        learning_rate=rate,
        seconds=time.perf_counter() - start,
    )


def _finite(loss: float, step: int) -> float:
    if not math.isfinite(loss):
        raise DivergedError(f"the training loss is {loss} after step {step}; lower weights.learning_rate")
    return loss


@torch.no_grad()
def accuracy(model: nn.Module, batches: Batches) -> float:
    """Top-1 accuracy of `model` in evaluation mode over all batches, a fraction."""
    training = model.training
    model.eval()
    correct = seen = 0
    for images, labels in batches:
        correct += int((model(images).argmax(1) == labels).sum())
        seen += len(labels)
    model.train(training)
    return correct / seen
