"""The dense network, trained by the same recipe without any pruning: what the pruned one is compared with."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from atopipe.ato.execution import PLAIN, Execution
from atopipe.ato.recipe import Recipe
from atopipe.ato.schedule import Phase, learning_rate_factor
from atopipe.ato.snapshot import Snapshot, joined, of_generators, restore_generators
from atopipe.ato.training.loop import (
    NO_CHECKPOINTS,
    Checkpointer,
    EpochRecord,
    EvalBatches,
    Report,
    TrainBatches,
    run_epochs,
)
from atopipe.ato.training.norm_estimates import Calibration
from atopipe.ato.training.weights import WeightTrainer


class DenseTrainer:
    """All state of a dense run: the weight step of a pruning run in its dense phase, and nothing else."""

    def __init__(
        self,
        model: nn.Module,
        recipe: Recipe,
        steps: int,
        generator: torch.Generator,
        execution: Execution = PLAIN,
        head: str | None = None,
        calibration: Calibration | None = None,
    ) -> None:
        self.settings, self.total_steps, self.finished_steps = recipe.weights, steps, 0
        self.phase, self.generator = Phase.DENSE, generator
        self.execution, self.calibration = execution, calibration
        self.weights = WeightTrainer(model, recipe.weights, execution, generator, head=head)

    @property
    def network(self) -> nn.Module:
        """The network as it would be delivered now."""
        return self.weights.delivered

    def step(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """One step on a batch; loss and number of correct predictions as tensors."""
        result = self.weights.step(images, labels, self.learning_rate())
        self.weights.average_in()
        self.finished_steps += 1
        if self.finished_steps == self.total_steps and self.calibration is not None:
            self.calibration.settle(self.network)
        return result

    def look(self) -> AbstractContextManager[None]:
        """Running statistics follow dense weights."""
        return nullcontext()

    def learning_rate(self) -> float:
        """The weights' learning rate of the next step."""
        factor = learning_rate_factor(self.finished_steps, self.total_steps, self.settings.warmup)
        return self.settings.learning_rate * factor

    def kept(self) -> dict[str, float]:
        """There is no budget."""
        return {}

    def snapshot(self) -> Snapshot:
        """The current state of the whole run."""
        steps = Snapshot({}, {"finished": self.finished_steps})
        return joined(weights=self.weights.snapshot(), generators=of_generators(self.generator), steps=steps)

    def restore(self, snapshot: Snapshot) -> None:
        """Load a snapshot into a run that has not started."""
        self.weights.restore(snapshot.part("weights"))
        self.finished_steps = snapshot.part("steps").values["finished"]
        restore_generators(self.generator, snapshot.part("generators"))


def train_dense(
    model: nn.Module,
    *,
    train_batches: TrainBatches,
    val_batches: EvalBatches,
    recipe: Recipe,
    generator: torch.Generator,
    report: Report,
    execution: Execution = PLAIN,
    head: str | None = None,
    calibration: Calibration | None = None,
    checkpointer: Checkpointer = NO_CHECKPOINTS,
) -> tuple[nn.Module, tuple[EpochRecord, ...]]:
    """Train `model` densely; the trained network and the record of each epoch. `model` is consumed.

    `head`, `calibration`: as in a pruning run. Raises DivergedError when the loss is no longer finite.
    """
    trainer = DenseTrainer(model, recipe, recipe.epochs * len(train_batches), generator, execution, head, calibration)
    history = run_epochs(trainer, recipe.epochs, train_batches, val_batches, report, checkpointer)
    return trainer.network.eval(), history
