"""Epochs: batches go into a trainer; progress, and a record of each epoch, come out."""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn

from atopipe.ato import collectives
from atopipe.ato.execution import PLAIN, Execution
from atopipe.ato.search.mask_search import DivergedError
from atopipe.ato.snapshot import Snapshot, joined

REPORT_EVERY = 10


class EvalBatches(Protocol):
    """The batches of one epoch: images [B, C, H, W] float32 and labels [B] int64, on the model's device."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]: ...


class TrainBatches(EvalBatches, Protocol):
    """EvalBatches in an order that can be taken up again in the middle of an epoch."""

    def order(self) -> Tensor:
        """What decides about the next epoch: the state of a generator."""
        ...

    def resume(self, order: Tensor, done: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The epoch that `order` decided about, without its first `done` batches."""
        ...


class TrainingRun(Protocol):
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

    def look(self) -> AbstractContextManager[None]:
        """While active, `network` has the statistics that it would be delivered with."""
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

    def kept(self) -> Mapping[str, float]:
        """What each budget's cost would be if the network were pruned now: fractions of dense, by the costs' names."""
        ...

    def snapshot(self) -> Snapshot:
        """The current state of the run."""
        ...

    def restore(self, snapshot: Snapshot) -> None:
        """Make a run that has not begun the one of the snapshot."""
        ...


class Checkpointer(Protocol):
    """Keeps snapshots of a run, and knows the last one."""

    def latest(self) -> Snapshot | None:
        """Where the run was, if it was begun before."""
        ...

    def after_step(self, phase: str, take: Callable[[], Snapshot]) -> None:
        """A step is done, and the next one belongs to `phase`: now is a moment to `take` a snapshot."""
        ...


class NullCheckpointer:
    """Keeps nothing."""

    def latest(self) -> None:
        """There is nothing."""

    def after_step(self, phase: str, take: Callable[[], Snapshot]) -> None:
        """Nothing to do."""


NO_CHECKPOINTS = NullCheckpointer()


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
    """One finished epoch; accuracies are fractions.

    `kept`: what the mask as it stands keeps of every cost that has a budget, fractions of dense.
    """

    epoch: int
    epochs: int
    phase: str
    loss: float
    train_accuracy: float
    val_accuracy: float
    kept: Mapping[str, float]
    learning_rate: float
    seconds: float


Report = Callable[[Progress | EpochRecord], None]


@dataclass
class _Epoch:
    """The current epoch; `seconds` were spent on it before this process resumed it."""

    number: int
    order: Tensor
    losses: list[Tensor] = field(default_factory=list)
    correct: list[Tensor] = field(default_factory=list)
    seen: int = 0
    seconds: float = 0.0
    started: float = field(default_factory=time.perf_counter)
    phase: str = ""
    rate: float = 0.0

    def elapsed(self) -> float:
        return self.seconds + time.perf_counter() - self.started

    def snapshot(self) -> Snapshot:
        values = {
            "number": self.number,
            "seen": self.seen,
            "seconds": self.elapsed(),
            "phase": self.phase,
            "rate": self.rate,
        }
        tensors = {"order": self.order, "losses": torch.stack(self.losses), "correct": torch.stack(self.correct)}
        return Snapshot(tensors, values)

    @staticmethod
    def restored(snapshot: Snapshot, device: torch.device) -> "_Epoch":
        values, tensors = snapshot.values, snapshot.tensors
        losses, correct = (list(tensors[name].to(device).unbind()) for name in ("losses", "correct"))
        return _Epoch(
            values["number"],
            tensors["order"],
            losses,
            correct,
            values["seen"],
            values["seconds"],
            phase=values["phase"],
            rate=values["rate"],
        )


def run_epochs(
    trainer: TrainingRun,
    epochs: int,
    train_batches: TrainBatches,
    val_batches: EvalBatches,
    report: Report,
    checkpointer: Checkpointer = NO_CHECKPOINTS,
) -> tuple[EpochRecord, ...]:
    """Run all epochs, report each, and return their records; raises DivergedError at a loss that is not finite.

    Begins where `checkpointer` has its last snapshot; the epochs that were complete then are not reported again.
    """
    history: list[EpochRecord] = []
    epoch = _Epoch(1, train_batches.order())
    if (snapshot := checkpointer.latest()) is not None:
        trainer.restore(snapshot.part("trainer"))
        history = [EpochRecord(**record) for record in snapshot.part("history").values["records"]]
        epoch = _Epoch.restored(snapshot.part("epoch"), next(trainer.network.parameters()).device)

    def take() -> Snapshot:
        records = Snapshot({}, {"records": [asdict(record) for record in history]})
        return joined(trainer=trainer.snapshot(), epoch=epoch.snapshot(), history=records)

    while epoch.number <= epochs:
        _train_epoch(trainer, epoch, epochs, train_batches, report, lambda phase: checkpointer.after_step(phase, take))
        history.append(_record(trainer, epoch, epochs, val_batches))
        report(history[-1])
        epoch = _Epoch(epoch.number + 1, train_batches.order())
    return tuple(history)


def _train_epoch(
    trainer: TrainingRun,
    epoch: _Epoch,
    epochs: int,
    batches: TrainBatches,
    report: Report,
    after_step: Callable[[str], None],
) -> None:
    """The rest of an epoch."""
    epoch.phase = epoch.phase or trainer.phase
    for images, labels in batches.resume(epoch.order, len(epoch.losses)):
        epoch.rate = trainer.learning_rate()
        loss, hits = trainer.step(images, labels)
        epoch.losses.append(loss)
        epoch.correct.append(hits)
        epoch.seen += len(labels)
        done = trainer.finished_steps
        if done % REPORT_EVERY == 0:
            recent = _finite(float(torch.stack(epoch.losses[-REPORT_EVERY:]).mean()), done)
            report(Progress(done, trainer.total_steps, epoch.number, epochs, trainer.phase, recent))
        after_step(trainer.phase)


def _record(trainer: TrainingRun, epoch: _Epoch, epochs: int, val_batches: EvalBatches) -> EpochRecord:
    with trainer.look():
        val_accuracy = accuracy(trainer.network, val_batches, trainer.execution)
    totals = torch.stack([torch.stack(epoch.losses).mean(), torch.stack(epoch.correct).sum() / epoch.seen])
    collectives.all_reduce_mean([totals])
    return EpochRecord(
        epoch=epoch.number,
        epochs=epochs,
        phase=epoch.phase,
        loss=_finite(float(totals[0]), trainer.finished_steps),
        train_accuracy=float(totals[1]),
        val_accuracy=val_accuracy,
        kept=trainer.kept(),
        learning_rate=epoch.rate,
        seconds=epoch.elapsed(),
    )


def _finite(loss: float, step: int) -> float:
    if not math.isfinite(loss):
        raise DivergedError(f"the training loss is {loss} after step {step}; lower weights.learning_rate")
    return loss


@torch.no_grad()
def accuracy(model: nn.Module, batches: EvalBatches, execution: Execution = PLAIN) -> float:
    """Top-1 accuracy of `model` in evaluation mode over the batches of all processes, a fraction.

    Every process counts its own batches, with the first one's buffers: the statistics of normalisation differ.
    """
    training = model.training
    model.eval()
    for buffer in model.buffers():
        collectives.broadcast(buffer)
    hits, seen = [], 0
    for images, labels in batches:
        hits.append((execution.logits(model, images).argmax(1) == labels).sum())  # no batch waits for the one before
        seen += len(labels)
    model.train(training)
    counts = torch.tensor([int(torch.stack(hits).sum()) if hits else 0, seen])
    collectives.all_reduce_sum(counts)
    return int(counts[0]) / int(counts[1])
