"""Runs stages in order on a run directory, and skips what is complete and unchanged."""

import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from atopipe.pipeline.engine.process_group import broadcast_flags, together
from atopipe.pipeline.engine.stage import Context, Stage
from atopipe.pipeline.engine.start import weights_of
from atopipe.pipeline.engine.teacher import teacher_weights
from atopipe.pipeline.engine.workspace import Workspace
from atopipe.pipeline.report.terminal import Display
from atopipe.pipeline.rundir.directory import RunDirectory
from atopipe.pipeline.rundir.layout import DATA
from atopipe.pipeline.rundir.plan import changes
from atopipe.pipeline.system.errors import Interrupted, MissingError, UsageError
from atopipe.pipeline.system.failures import explain
from atopipe.pipeline.system.job import Job
from atopipe.pipeline.system.signals import deferred, stop_requested
from atopipe.pipeline.system.text import duration


def execute(
    chosen: Sequence[Stage],
    known: Sequence[Stage],
    run: RunDirectory,
    display: Display,
    *,
    forced: Collection[str] = (),
    workspace: Workspace | None = None,
    other: RunDirectory | None = None,
) -> None:
    """Run the `chosen` of the `known` stages; complete and unchanged ones are skipped unless they are `forced`.

    What is complete in the `other` run and would become the same here is taken over.
    Raises UsageError where a stage that another one reads is not there or out of date, MissingError where a file of a
    stage that would be skipped is not as that stage left it.
    """
    workspace = workspace or Workspace(run.config, display)
    try:
        _fetch_weights(chosen, run, forced)
        for stage in chosen:
            run.stages.recover(stage.name)
            _require(stage.inputs, known, run)
            if _take_over(stage, run, other, display, forced):
                continue
            if stage.name not in forced and run.stages.is_current(stage):
                _skip(stage, run, display)
            else:
                workspace.trained_on = _trained_on(stage, known, run)
                _run_stage(stage, run, workspace, display)
    except BaseException:
        with suppress(Exception):  # the records of what is complete; what went wrong before weighs more
            run.record.publish(known)
        raise
    run.record.publish(known)


def execute_together(
    job: Job,
    chosen: Sequence[Stage],
    known: Sequence[Stage],
    run: RunDirectory,
    display: Display,
    *,
    forced: Collection[str],
    other: RunDirectory | None = None,
) -> None:
    """`execute` in one process of a job: all of them run the distributed stages, rank 0 alone the others.

    Which stages are to be run is decided by rank 0; the `run` of every other process is its own, and is thrown away.
    The others wait for what rank 0 does before the first distributed stage.
    """
    workspace = Workspace(run.config, display)
    distributed = [stage for stage in chosen if stage.distributed]
    for stage in distributed:
        run.stages.recover(stage.name)
    before = chosen[: chosen.index(distributed[0])]
    if job.rank == 0:
        _fetch_weights(distributed, run, forced)
        execute(before, known, run, display, forced=forced, workspace=workspace, other=other)
        for stage in distributed:
            _take_over(stage, run, other, display, forced)
    with together(workspace.device, workspace.stop):
        wanted = broadcast_flags([s.name in forced or not run.stages.is_current(s) for s in distributed])
        trained = [stage for stage, is_wanted in zip(distributed, wanted, strict=True) if is_wanted]
        at_hand = known if job.rank == 0 else trained  # the others have nothing of what earlier stages left
        execute(trained, at_hand, run, display, forced=[stage.name for stage in trained], workspace=workspace)
    if job.rank == 0:
        rest = [stage for stage in chosen if stage not in (*before, *trained)]
        execute(rest, known, run, display, forced=forced, workspace=workspace)


def _trained_on(stage: Stage, known: Sequence[Stage], run: RunDirectory) -> Mapping[str, Any] | None:
    """What the source of the images answered when the network was trained; None where that is not done, or begins."""
    trained = next((other for other in known if other.name == "train" and other is not stage), None)
    result = run.stages.result("train")
    if trained is None or result is None or DATA not in result.artifacts or not run.stages.is_current(trained):
        return None
    found: dict[str, Any] = json.loads(run.stages.artifact("train", DATA).read_text(encoding="utf-8"))
    return dict(found["answer"])


def _take_over(
    stage: Stage, run: RunDirectory, other: RunDirectory | None, display: Display, forced: Collection[str]
) -> bool:
    """Takes a stage that is not done here from the other run, where that has the same."""
    wanted = other is not None and stage.name not in forced and not run.stages.is_current(stage)
    if taken := other is not None and wanted and run.stages.take_over(stage, other.stages):
        run.record.event("stage taken over", stage=stage.name, run=str(other.root))
        display.say(f"{stage.name:<8} taken over from '{other.root}'")
    return taken


def _skip(stage: Stage, run: RunDirectory, display: Display) -> None:
    run.stages.check_artifacts(stage.name)
    run.stages.drop_checkpoints(stage.name)
    lost = run.stages.restore_copies(stage)
    restored = f"; {len(lost)} of its copies restored, the first is '{lost[0]}'" if lost else ""
    display.say(f"{stage.name:<8} unchanged, skipped{restored}")


def _fetch_weights(chosen: Sequence[Stage], run: RunDirectory, forced: Collection[str]) -> None:
    """Sees to it that the starting weights, and those of a teacher, are there before their digest is part of a key.

    Stages that are complete do without: their results were made with the weights that the record knows.
    """
    if any(stage.distributed and (stage.name in forced or not run.stages.result(stage.name)) for stage in chosen):
        weights_of(run.config, fetched=True)
        teacher_weights(run.config)


def _require(inputs: Iterable[str], known: Sequence[Stage], run: RunDirectory) -> None:
    for stage in known:
        if stage.name in inputs and not run.stages.is_current(stage):
            why = changes(stage, run)[0]
            state = f"is out of date ({why})" if run.stages.result(stage.name) else "is not complete"
            raise UsageError(f"stage {stage.name} of '{run.root}' {state}: run 'atopipe {_command(stage, run)}' first")


def _command(stage: Stage, run: RunDirectory) -> str:
    return f"run --output {run.root} ..." if stage.distributed else f"{stage.name} {run.root}"


def _run_stage(stage: Stage, run: RunDirectory, workspace: Workspace, display: Display) -> None:
    name = stage.name
    run.record.event("stage started", stage=name)
    display.begin(name)
    with ExitStack() as until_recorded:
        with _failure_recorded(name, run, display), run.stages.writing(stage) as attempt:
            with workspace.limited_threads():
                attempt.metrics = stage.run(Context(stage, run, attempt.folder, workspace, display))
            until_recorded.enter_context(deferred())  # Ctrl-C waits until the stage is complete, and on record
        run.record.event("stage complete", stage=name, seconds=attempt.seconds, metrics=dict(attempt.metrics))
    display.say(f"{name:<8} {duration(attempt.seconds)}")
    if workspace.stop.made or stop_requested.made:
        raise Interrupted(f"interrupted after stage {name}: run again to resume")


@contextmanager
def _failure_recorded(name: str, run: RunDirectory, display: Display) -> Iterator[None]:
    """Writes down that the stage failed if it does in here, and tells the error with its stage."""
    try:
        yield
    except BaseException as error:
        with suppress(OSError):  # the folder may be what failed
            run.record.event("stage failed", stage=name, error=f"{type(error).__name__}: {error}")
        was_asked = isinstance(error, KeyboardInterrupt) or stop_requested.made
        raise (_interrupted(name, run.root) if was_asked else _placed(error, run.root)) from error
    finally:
        display.stop()


def _interrupted(stage: str, root: Path) -> Interrupted:
    return Interrupted(f"interrupted in stage {stage}: complete stages in '{root}' stay usable, run again to resume")


def _placed(error: BaseException, root: Path) -> BaseException:
    """The same error, told with the folder where that helps."""
    if isinstance(error, OSError) and not root.exists():
        return MissingError(f"'{root}' was moved or deleted while it was in use: move it back, and run again to resume")
    failure = explain(error, root) if isinstance(error, OSError) else None
    return MissingError(failure.message) if failure else error
