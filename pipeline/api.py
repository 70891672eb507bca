"""The Python entrance: run a configuration in a directory, and read what came out."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from atopipe.pipeline.config.schema import Config
from atopipe.pipeline.engine import networks
from atopipe.pipeline.engine.runner import execute, execute_together
from atopipe.pipeline.engine.stage import Stage
from atopipe.pipeline.report.ci import append_step_summary
from atopipe.pipeline.report.results import results_of, summary_of
from atopipe.pipeline.report.terminal import Display, QuietDisplay
from atopipe.pipeline.report.verdicts import GateVerdict, equivalence_failure, verdicts_of
from atopipe.pipeline.rundir import verify as verification
from atopipe.pipeline.rundir.directory import RunDirectory, scratch_directory
from atopipe.pipeline.rundir.lock import locked
from atopipe.pipeline.stages import STAGES, stages_of
from atopipe.pipeline.system.errors import ParityGateFailed, UsageError
from atopipe.pipeline.system.job import Job, this_job
from atopipe.pipeline.system.signals import terminable
from atopipe.pipeline.system.text import nearest_or_all
from atopipe.pipeline.tracking.mirror import NEEDS, mirrored

if TYPE_CHECKING:
    from torch import nn

QUIET = QuietDisplay()


@dataclass(frozen=True)
class Selection:
    """Which stages a run goes through: those of `names`, or all, up to `last`.

    What is complete is skipped, but from `first` on everything runs again.
    """

    names: tuple[str, ...] | None = None
    first: str | None = None
    last: str | None = None


ALL = Selection()


@dataclass(frozen=True)
class Outcome:
    """What came out of a run: the metrics of all complete stages, and the verdicts of the gates if it judged them.

    A gate that failed is a result like any other: `passed` is False.
    """

    directory: Path
    metrics: Mapping[str, float]
    verdicts: tuple[GateVerdict, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether no gate failed and none was inconclusive."""
        return all(verdict.outcome == "pass" for verdict in self.verdicts)


def run(
    config: Config,
    directory: str | Path,
    *,
    stages: Selection = ALL,
    force: bool = False,
    update: bool = False,
    reuse: str | Path | None = None,
    display: Display = QUIET,
    trackers: Sequence[str] = (),
) -> Outcome:
    """Runs `config` in `directory`, which is new or holds the same run; complete and unchanged stages are skipped.

    `force`: run every stage again, and replace a run of another configuration. `update`: let a run of another
    configuration take on this one, and run again what that changes. `reuse`: the directory of another run, whose
    complete stages are taken over where they are what this run would make. `display`: is told what happens.
    `trackers`: names of `tracking.mirror.NEEDS` in which the run is mirrored.

    Raises a subclass of AtopipeError, whose message is one sentence: UsageError for what cannot work, MissingError for
    what is not there or a directory that another process works in, Interrupted. Works in any thread; outside the main
    one, signals are left to the program.
    """
    root, job = Path(directory), this_job()
    for name in trackers:
        if name not in NEEDS:
            raise UsageError(f"there is no tracker '{name}': {nearest_or_all(name, NEEDS)}")
    chosen, forced = select(config, stages, force=force)
    together = job.size > 1 and any(stage.distributed for stage in chosen)
    if together:
        job.check_batch(config.recipe.batch_size)
    if job.rank > 0:
        if together:
            _take_part(job, config, chosen, forced)
        return Outcome(root, {})
    RunDirectory.check(root, config, force=force or update)
    trains = any(stage.distributed and stage.name in forced for stage in chosen)
    with exclusive(root, display):
        afresh = trains or RunDirectory.holds_another(root, config)
        found = RunDirectory.create(root, config, force=force or update)
        with mirrored(found, trackers, force=afresh, say=display.say):
            other = None if reuse is None else RunDirectory.open(Path(reuse))
            return _carry_out(job if together else Job(), found, chosen, forced, display, other)


def load_shrunk(directory: str | Path) -> "nn.Module":
    """The small network of the run in `directory`, in evaluation mode on the CPU, its files checked."""
    return networks.load_shrunk(RunDirectory.open(Path(directory)))


def verify(directory: str | Path) -> list[verification.Problem]:
    """What is missing, changed or extra in the run in `directory`; empty if it is as its stages left it."""
    return verification.verify(RunDirectory.open(Path(directory)), STAGES)


def select(config: Config, selection: Selection, *, force: bool) -> tuple[list[Stage], list[str]]:
    """The stages to go through, and the names of those that run even if they are complete.

    Raises UsageError for a stage that does not exist, or has no part in such a run, and for an order that is none.
    """
    stages = stages_of(config)
    known = [stage.name for stage in stages]
    for name in selection.names or ():
        if name not in {stage.name for stage in STAGES}:
            raise UsageError(f"there is no stage '{name}': {nearest_or_all(name, known)}")
    first, last = (_position(f, n, known) for f, n in (("--from", selection.first), ("--until", selection.last)))
    if first is not None and last is not None and last < first:
        raise UsageError(f"--until is {selection.last}, which comes before --from {selection.first}: swap them")
    reached = stages[: None if last is None else last + 1]
    chosen = [stage for stage in reached if selection.names is None or stage.name in selection.names]
    if not chosen:
        raise UsageError(_nothing_to_do(selection))
    again = known if force else known[len(known) if first is None else first :]
    return chosen, [stage.name for stage in chosen if stage.name in again]


@contextmanager
def exclusive(root: Path, display: Display) -> Iterator[None]:
    """While active, the run is this process's, which cleans up when it is asked to end."""
    with terminable(), locked(root) as note:
        if note:
            display.say(note)
        yield


def _position(flag: str, name: str | None, known: Sequence[str]) -> int | None:
    """Where in the order the stage stands; None where none is named."""
    if name is not None and name not in known:
        raise UsageError(f"{flag} is {name}, which is no stage of this run: {nearest_or_all(name, known)}")
    return None if name is None else known.index(name)


def _nothing_to_do(selection: Selection) -> str:
    """Why no stage is left: it is not among those of this run, or behind the last one."""
    named = [stage for stage in STAGES if stage.name in (selection.names or ())]
    if remedy := next((stage.remedy for stage in named if stage.remedy), None):
        return f"this run has no stage {named[0].name}: add {remedy}"
    return f"--until is {selection.last}, which comes before all that is to be done: choose a later stage"


def _take_part(job: Job, config: Config, chosen: Sequence[Stage], forced: Sequence[str]) -> None:
    """What a process does that is not the first of its job."""
    with TemporaryDirectory() as scratch:
        found = scratch_directory(Path(scratch), config)
        execute_together(job, chosen, stages_of(config), found, QUIET, forced=forced)


def _carry_out(
    job: Job,
    found: RunDirectory,
    chosen: Sequence[Stage],
    forced: Sequence[str],
    display: Display,
    other: RunDirectory | None,
) -> Outcome:
    """Runs the chosen stages, and says what came out of them."""
    known, done = stages_of(found.config), {stage.name for stage in chosen}
    for name in forced:
        found.stages.drop_checkpoints(name)
    try:
        if job.size > 1:
            execute_together(job, chosen, known, found, display, forced=forced, other=other)
        else:
            execute(chosen, known, found, display, forced=forced, other=other)
    except ParityGateFailed:
        verdicts = verdicts_of(found)
        if equivalence_failure(verdicts) is None:  # the bundle failed its own test, which no gate knows of
            raise
        return Outcome(found.root, found.record.metrics(known), verdicts)
    if "report" in done:
        _show(found, next(stage for stage in known if stage.name == "report"), display)
    return Outcome(found.root, found.record.metrics(known), verdicts_of(found) if "validate" in done else ())


def _show(found: RunDirectory, report: Stage, display: Display) -> None:
    summary = summary_of(found, results_of(found, report.inputs))
    display.closing(summary)
    append_step_summary(summary.as_markdown())
