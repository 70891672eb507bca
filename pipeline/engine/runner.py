"""Runs stages in order on a run directory, and skips what is complete and unchanged."""

import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from atopipe.pipeline.engine.process_group import agreed, together
from atopipe.pipeline.engine.stage import Context, Stage
from atopipe.pipeline.engine.workspace import Workspace
from atopipe.pipeline.report.terminal import Display
from atopipe.pipeline.rundir.directory import RunDirectory
from atopipe.pipeline.system.errors import Interrupted, MissingError, UsageError
from atopipe.pipeline.system.failures import explain
from atopipe.pipeline.system.job import Job
from atopipe.pipeline.system.machine import peak_memory_bytes
from atopipe.pipeline.system.signals import deferred, told
from atopipe.pipeline.system.text import duration


def execute(
    chosen: Sequence[Stage],
    known: Sequence[Stage],
    run: RunDirectory,
    display: Display,
    *,
    forced: Collection[str] = (),
    workspace: Workspace | None = None,
) -> None:
    """Run the `chosen` of the `known` stages; complete and unchanged ones are skipped unless they are `forced`.

    Raises UsageError where a stage that another one reads is not there or out of date, MissingError where a file of a
    stage that would be skipped is not as that stage left it.
    """
    try:
        for stage in chosen:
            run.recover(stage.name)
            _require(stage.inputs, known, run)
            if stage.name not in forced and run.is_current(stage):
                _skip(stage, run, display)
            else:
                workspace = workspace or Workspace(run.config, display)
                _run_stage(Context(stage, run, run.begin(stage.name), workspace, display))
    except BaseException:
        with suppress(Exception):  # the records of what is complete; what went wrong before weighs more
            run.publish(known)
        raise
    run.publish(known)


def _skip(stage: Stage, run: RunDirectory, display: Display) -> None:
    run.check_artifacts(stage.name)
    run.drop_checkpoints(stage.name)
    display.say(f"{stage.name:<8} unchanged, skipped")


def execute_together(
    job: Job,
    chosen: Sequence[Stage],
    known: Sequence[Stage],
    run: RunDirectory,
    display: Display,
    *,
    forced: Collection[str],
) -> None:
    """`execute` in one process of a job: all of them run the stages that train, rank 0 alone the others.

    Which stages are to be run is decided by rank 0; the `run` of every other process is its own, and is thrown away.
    """
    workspace = Workspace(run.config, display)
    shared = [stage for stage in chosen if stage.distributed]
    for stage in shared:
        run.recover(stage.name)
    with together(workspace.device):
        wanted = agreed([stage.name in forced or not run.is_current(stage) for stage in shared])
        trained = [stage for stage, is_wanted in zip(shared, wanted, strict=True) if is_wanted]
        execute(trained, known, run, display, forced=[stage.name for stage in trained], workspace=workspace)
    if job.rank == 0:
        rest = [stage for stage in chosen if stage not in trained]
        execute(rest, known, run, display, forced=forced, workspace=workspace)


def _require(inputs: Iterable[str], known: Sequence[Stage], run: RunDirectory) -> None:
    for stage in known:
        if stage.name in inputs and not run.is_current(stage):
            state = "is out of date" if run.result(stage.name) else "is not complete"
            raise UsageError(f"stage {stage.name} of '{run.root}' {state}: run 'atopipe {_command(stage, run)}' first")


def _command(stage: Stage, run: RunDirectory) -> str:
    return f"run --output {run.root} ..." if stage.distributed else f"{stage.name} {run.root}"


def _run_stage(context: Context) -> None:
    stage, run, name = context.stage, context.run, context.stage.name
    run.event("stage started", stage=name)
    context.display.begin(name)
    started = time.perf_counter()
    with _given_up_on_error(context):
        metrics = stage.run(context)
    seconds = time.perf_counter() - started
    with deferred():
        with _given_up_on_error(context):
            run.commit(stage, metrics, seconds, peak_memory_bytes())
        run.event("stage complete", stage=name, seconds=seconds, metrics=dict(metrics))
    context.display.say(f"{name:<8} {duration(seconds)}")
    if context.workspace.stop.made or told.made:
        raise Interrupted(f"interrupted after stage {name}: run it again to go on")


@contextmanager
def _given_up_on_error(context: Context) -> Iterator[None]:
    """Drops what the stage has begun if it fails in here, and tells the error with its stage."""
    run, name = context.run, context.stage.name
    try:
        yield
    except BaseException as error:
        run.abandon(name)
        run.event("stage failed", stage=name, error=f"{type(error).__name__}: {error}")
        raise _named(error, name, run.root) from error
    finally:
        context.display.stop()


def _named(error: BaseException, stage: str, root: Path) -> BaseException:
    """The same error, told with the stage and the folder where that helps."""
    if isinstance(error, KeyboardInterrupt) or told.made:
        return Interrupted(
            f"interrupted in stage {stage}: what is complete in '{root}' stays usable, run it again to go on"
        )
    failure = explain(error, root) if isinstance(error, OSError) else None
    return MissingError(failure.message) if failure else error
