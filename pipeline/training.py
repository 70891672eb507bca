"""What the stages that train share: their batches, what is shown and recorded, what they leave."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from atopipe.pipeline.networks import save_tensors
from atopipe.pipeline.run_directory import EXECUTION, write_json
from atopipe.pipeline.runner import Context

if TYPE_CHECKING:
    from torch import nn

    from atopipe.ato.execution import Execution
    from atopipe.ato.loop import EpochRecord, Progress
    from atopipe.pipeline.splits import Batches


def train_batches(context: Context) -> "Batches":
    """Shuffled and augmented, this process's share of each; the same order in every stage and process of a run."""
    from atopipe.pipeline.splits import Share

    workspace = context.workspace
    size, order = context.config.recipe.batch_size, workspace.generator(1)
    share = Share(workspace.job.rank, workspace.job.size)
    return workspace.data.train.batches(size, device=workspace.device, generator=order, share=share)


def val_batches(context: Context) -> "Batches":
    """The whole validation set."""
    workspace = context.workspace
    return workspace.data.val.batches(context.config.recipe.batch_size, device=workspace.device)


def reporter(context: Context) -> "Callable[[Progress | EpochRecord], None]":
    """Shows every step and every epoch, and records the epochs."""
    from atopipe.ato.loop import EpochRecord

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
