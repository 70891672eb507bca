"""What the stages that train share: their batches, what is shown and recorded, what they leave."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING

from atopipe.pipeline.engine.process_group import shared
from atopipe.pipeline.engine.stage import Context
from atopipe.pipeline.models.inference import save_tensors
from atopipe.pipeline.rundir.checkpoints import Checkpoints, unpacked
from atopipe.pipeline.rundir.layout import EXECUTION
from atopipe.pipeline.system.files import write_json

if TYPE_CHECKING:
    from torch import nn

    from atopipe.ato.execution import Execution
    from atopipe.ato.snapshot import Snapshot
    from atopipe.ato.training.loop import EpochRecord, Keeper, Progress
    from atopipe.pipeline.data.dataset import Batches, SplitBatches


def train_batches(context: Context) -> "SplitBatches":
    """Shuffled and augmented, this process's share of each; the same order in every stage and process of a run."""
    from atopipe.pipeline.data.dataset import Share

    workspace = context.workspace
    size, order = context.config.recipe.batch_size, workspace.generator(1)
    share = Share(workspace.job.rank, workspace.job.size)
    return workspace.data.train.batches(size, device=workspace.device, generator=order, share=share)


def val_batches(context: Context) -> "Batches":
    """This process's share of the validation set."""
    from atopipe.pipeline.data.dataset import Share

    workspace = context.workspace
    share = Share(workspace.job.rank, workspace.job.size)
    return workspace.data.val.batches(context.config.recipe.batch_size, device=workspace.device, share=share)


@contextmanager
def checkpointed(context: Context) -> "Iterator[Keeper]":
    """What keeps the snapshots of this stage; while active, Ctrl-C and SIGTERM wait for the end of a step.

    In a job of several processes the first one keeps them, and all of them go on from its last.
    """
    run, job, stop = context.run, context.workspace.job, context.workspace.stop
    checkpoints = Checkpoints(
        run.checkpoints(context.stage.name),
        run.key(context.stage),
        context.config.checkpoint_minutes,
        stop,
        context.display.say,
        lambda step, seconds: run.event("checkpoint", step=step, seconds=seconds),
    )
    run.event("training started", stage=context.stage.name)
    if job.size > 1:
        yield Together(checkpoints, first=job.rank == 0)
    else:
        with stop.listening():
            yield checkpoints


class Together:
    """The checkpoints of a job of several processes."""

    def __init__(self, checkpoints: Checkpoints, *, first: bool) -> None:
        self.checkpoints, self.first = checkpoints, first

    def latest(self) -> "Snapshot | None":
        """The first process's newest snapshot, in all of them."""
        content = shared(self.checkpoints.latest_bytes() if self.first else None)
        return unpacked(content) if content else None

    def after_step(self, phase: str, take: "Callable[[], Snapshot]") -> None:
        """The first process keeps a snapshot if it is time for one."""
        if self.first:
            self.checkpoints.after_step(phase, take)


def reporter(context: Context) -> "Callable[[Progress | EpochRecord], None]":
    """Shows every step and every epoch, and records the epochs."""
    from atopipe.ato.training.loop import EpochRecord

    def report(happened: "Progress | EpochRecord") -> None:
        if isinstance(happened, EpochRecord):
            context.display.epoch(happened)
            context.run.event("epoch", **asdict(happened))
        else:
            context.display.progress(happened)

    return report


def save_training(
    context: Context, model: "nn.Module", history: "Sequence[EpochRecord]", execution: "Execution"
) -> float:
    """Writes weights.safetensors, history.json and execution.json; the seconds that the epochs took."""
    save_tensors(context.folder / "weights.safetensors", model.state_dict())
    write_json(context.folder / "history.json", [asdict(record) for record in history])
    write_json(context.folder / EXECUTION, context.workspace.conditions(execution))
    return sum(record.seconds for record in history)
