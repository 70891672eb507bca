"""What the stages that train share: their batches, what keeps their snapshots, what is shown, what they leave."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from atopipe.ato.recipe import WeightSettings
from atopipe.pipeline.config.load import DEFAULT_RECIPE
from atopipe.pipeline.config.schema import Config
from atopipe.pipeline.engine.busy import StepWatch
from atopipe.pipeline.engine.process_group import broadcast_bytes
from atopipe.pipeline.engine.stage import Context
from atopipe.pipeline.models.inference import save_tensors
from atopipe.pipeline.rundir.checkpoints import Checkpoints, unpacked
from atopipe.pipeline.rundir.layout import DATA, EXECUTION
from atopipe.pipeline.system.errors import DataError
from atopipe.pipeline.system.files import sha256_json, write_json
from atopipe.pipeline.system.job import all_reduce_min
from atopipe.pipeline.system.signals import StopRequest, ending, handled_by

if TYPE_CHECKING:
    from torch import nn

    from atopipe.ato.execution import Execution
    from atopipe.ato.snapshot import Snapshot
    from atopipe.ato.training.loop import Checkpointer, EpochRecord, Progress
    from atopipe.pipeline.data.dataset import Batches, SplitBatches

    Report = Callable[[Progress | EpochRecord], None]

LEAST_SHARE = 32  # images of a batch for each process
LARGE = 100_000  # training images


@dataclass(frozen=True)
class SessionBatches:
    """`train`: as `Workspace.train_batches` has them; `val`: as `Workspace.val_batches` has them."""

    train: "SplitBatches"
    val: "Batches"


@contextmanager
def training_session(
    context: Context, start: "Callable[[], Snapshot | None]" = lambda: None
) -> "Iterator[tuple[SessionBatches, Checkpointer, Report]]":
    """The batches, what keeps the snapshots, and what shows and records the progress of a stage that trains.

    `start`: where the first process begins if there is no checkpoint.

    While active, Ctrl-C and SIGTERM wait for the end of a step. In a job of several processes the first one keeps the
    snapshots, and all of them resume from its last one and stop after the same step.
    """
    workspace, stop = context.workspace, context.workspace.stop
    context.run.record.event("training started", stage=context.stage.name)
    batches = SessionBatches(workspace.train_batches(), workspace.val_batches())
    checkpoints, report = _checkpoints(context, start), _reporter(context)
    if workspace.job.size == 1:
        with stop.listening():
            yield batches, checkpoints, report
        return
    mine = sha256_json(workspace.answer).encode()
    if broadcast_bytes(mine) != mine:
        raise DataError(
            f"data '{context.config.data.source}' gives process {workspace.job.rank} of the job other images or labels "
            "than the first one: let it give the same each time (a set has no order, a random number needs the seed)"
        )
    asked = StopRequest()
    with handled_by(asked.note, *ending()):
        yield batches, DistributedCheckpoints(checkpoints, asked, stop, first=workspace.job.rank == 0), report


def _checkpoints(context: Context, start: "Callable[[], Snapshot | None]") -> Checkpoints:
    run = context.run
    return Checkpoints(
        run.stages.checkpoints(context.stage.name),
        sha256_json([run.stages.key(context.stage), context.workspace.answer]),
        context.config.checkpoint_minutes,
        context.workspace.stop,
        context.display.say,
        lambda step, seconds: run.record.event("checkpoint", step=step, seconds=seconds),
        start,
    )


class DistributedCheckpoints:
    """The checkpoints of a job of several processes: `asked` is this one's request to stop, `stop` that of the job."""

    def __init__(self, checkpoints: Checkpoints, asked: StopRequest, stop: StopRequest, *, first: bool) -> None:
        self.checkpoints, self.asked, self.stop, self.first = checkpoints, asked, stop, first

    def latest(self) -> "Snapshot | None":
        """The first process's newest snapshot, in all of them."""
        content = broadcast_bytes(self.checkpoints.latest_bytes() if self.first else None)
        return unpacked(content) if content else None

    def after_step(self, phase: str, take: "Callable[[], Snapshot]") -> None:
        """The first process keeps a snapshot if it is time for one, or if one process was asked to stop.

        Then all of them raise KeyboardInterrupt, after the same step.
        """
        self.stop.made = not all_reduce_min(int(not self.asked.made))
        if self.first:
            self.checkpoints.keep(phase, take)
        if self.stop.made:
            all_reduce_min(0)  # until the snapshot is on disk: the launcher ends the others when the first one leaves
            raise KeyboardInterrupt


def _reporter(context: Context) -> "Report":
    """Shows every step and every epoch, and records the epochs."""
    from atopipe.ato.training.loop import EpochRecord

    workspace = context.workspace
    may_wait = workspace.device.type == "cpu" and workspace.threads > 1
    watch = StepWatch(context.display.say) if may_wait else None

    def report(happened: "Progress | EpochRecord") -> None:
        if isinstance(happened, EpochRecord):
            context.display.epoch(happened)
            context.run.record.event("epoch", **asdict(happened))
        else:
            context.display.progress(happened)
            if watch is not None:
                watch.after(happened.phase, happened.step)

    return report


def doubtful_settings(config: Config, images: int, processes: int) -> "Iterator[str]":
    """What of the recipe does not suit so many training images, or so many processes; a sentence each."""
    share = config.recipe.batch_size // processes
    if processes > 1 and share < LEAST_SHARE:
        yield (
            f"batch size {config.recipe.batch_size} leaves {share} images for each of {processes} processes, too few "
            f"for batch statistics: --batch-size {LEAST_SHARE * processes} gives each {LEAST_SHARE}"
        )
    if images > LARGE and config.recipe.weights == WeightSettings():
        yield f"recipe {DEFAULT_RECIPE} is for small data, and there are {images:,} images: try --recipe imagenet"


def record_data(context: Context) -> None:
    """Writes data.json: what the source answered, and what makes the figures doubtful, which is shown as well."""
    from atopipe.pipeline.data.answer import remarks

    workspace, data = context.workspace, context.workspace.data
    found = [*remarks(data), *doubtful_settings(context.config, len(data.train), workspace.job.size)]
    for remark in found:
        context.display.say(f"note    {remark}")
        context.run.record.event("data remark", text=remark)
    write_json(context.folder / DATA, {"answer": context.workspace.answer, "remarks": found})


def save_training(
    context: Context, model: "nn.Module", history: "Sequence[EpochRecord]", execution: "Execution"
) -> float:
    """Writes weights.safetensors, history.json and execution.json; the seconds that the epochs took."""
    save_tensors(context.folder / "weights.safetensors", model.state_dict())
    write_json(context.folder / "history.json", [asdict(record) for record in history])
    write_json(context.folder / EXECUTION, context.workspace.conditions(execution))
    return sum(record.seconds for record in history)
