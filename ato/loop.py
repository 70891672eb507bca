"""Epochs: batches go into a trainer; progress, and a record of each epoch, come out."""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from atopipe.ato import replicas
from atopipe.ato.execution import PLAIN, Execution
from atopipe.ato.search import DivergedError

REPORT_EVERY = 10


class Batches(Protocol):
    """The batches of one epoch: images [B, C, H, W] float32 and labels [B] int64, on the model's device."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]: ...


class Steps(Protocol):
    """What an epoch is made of: the state of a run of `total_steps` steps."""

    finished_steps: int

    @property
    def total_steps(self) -> int: ...

    @property
    def phase(self) -> str:
        """What the next step belongs to."""
        ...

    @property
    def network(self) -> nn.Module:
        """The network as it would be delivered now."""
        ...

    @property
    def execution(self) -> Execution:
        """How the network is run."""
        ...

    def step(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Train on one batch; loss and number of correct predictions as tensors, without waiting for them."""
        ...

    def learning_rate(self) -> float:
        """The weights' learning rate of the next step."""
        ...

    def flops_kept(self) -> float:
        """The cost of the network as it would be pruned now, a fraction of dense."""
        ...


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


Report = Callable[[Progress | EpochRecord], None]


def run_epochs(
    trainer: Steps, epochs: int, train_batches: Batches, val_batches: Batches, report: Report
) -> tuple[EpochRecord, ...]:
    """Run all epochs, report each, and return their records; raises DivergedError at a loss that is not finite."""
    history = []
    for epoch in range(1, epochs + 1):
        record = _run_epoch(trainer, (epoch, epochs), train_batches, val_batches, report)
        history.append(record)
        report(record)
    return tuple(history)


def _run_epoch(
    trainer: Steps, place: tuple[int, int], train_batches: Batches, val_batches: Batches, report: Report
) -> EpochRecord:
    start, phase = time.perf_counter(), trainer.phase
    losses, correct, seen = [], [], 0
    for images, labels in train_batches:
        rate = trainer.learning_rate()
        loss, hits = trainer.step(images, labels)
        losses.append(loss)
        correct.append(hits)
        seen += len(labels)
        if trainer.finished_steps % REPORT_EVERY == 0:
            recent = _finite(float(torch.stack(losses[-REPORT_EVERY:]).mean()), trainer.finished_steps)
            report(Progress(trainer.finished_steps, trainer.total_steps, *place, trainer.phase, recent))
    totals = torch.stack([torch.stack(losses).mean(), torch.stack(correct).sum() / seen])
    replicas.average([totals])
    return EpochRecord(
        *place,
        phase=phase,
        loss=_finite(float(totals[0]), trainer.finished_steps),
        train_accuracy=float(totals[1]),
        val_accuracy=accuracy(trainer.network, val_batches, trainer.execution),
        flops_kept=trainer.flops_kept(),
        learning_rate=rate,
        seconds=time.perf_counter() - start,
    )


def _finite(loss: float, step: int) -> float:
    if not math.isfinite(loss):
        raise DivergedError(f"the training loss is {loss} after step {step}; lower weights.learning_rate")
    return loss


@torch.no_grad()
def accuracy(model: nn.Module, batches: Batches, execution: Execution = PLAIN) -> float:
    """Top-1 accuracy of `model` in evaluation mode over all batches, a fraction."""
    training = model.training
    model.eval()
    correct = seen = 0
    for images, labels in batches:
        correct += int((execution.logits(model, images).argmax(1) == labels).sum())
        seen += len(labels)
    model.train(training)
    return correct / seen
