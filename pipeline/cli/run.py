"""The commands that run stages: `run`, `train`, and one command per later stage."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from atopipe.pipeline.api import How, _default_output, _execute
from atopipe.pipeline.cli.options import Given
from atopipe.pipeline.cli.settings import _parted, configuration
from atopipe.pipeline.cli.status import _show_plan
from atopipe.pipeline.config.schema import Config
from atopipe.pipeline.report.terminal import Display, QuietDisplay, open_display
from atopipe.pipeline.rundir.directory import RunDirectory, Scratch
from atopipe.pipeline.rundir.lock import locked
from atopipe.pipeline.rundir.manifest import compared, differing, read_manifest
from atopipe.pipeline.system.errors import UsageError
from atopipe.pipeline.system.job import this_job
from atopipe.pipeline.system.signals import terminable
from atopipe.pipeline.tracking.mirror import mirrored


def start(names: Sequence[str] | None, output: str | None, options: Mapping[str, Given]) -> None:
    """Runs those stages, or all, of the run that the options describe, in its new or existing directory."""
    how, settings = _parted(options)
    config, job = configuration(settings, how.manifest), this_job()
    job.check_batch(config.recipe.batch_size)
    if job.rank > 0:
        _take_part(names, config, how)
        return
    root = Path(output) if output else _default_output(config)
    _require_another_place(root, how)
    RunDirectory.check(root, config, force=how.force)
    if how.dry:
        _show_plan(names, RunDirectory(root, config), how)
        return
    display = open_display(quiet=how.quiet, machine=how.machine)
    display.say(f"output  {root}")
    with _alone(root, display):
        run = RunDirectory.create(root, config, force=how.force)
        carry_out = _reproduce if how.manifest else _execute
        with mirrored(run, how.trackers, force=how.is_afresh, say=display.say):
            carry_out(names, run, display, how)


def _take_part(names: Sequence[str] | None, config: Config, how: How) -> None:
    """What a process does that is not the first of its job."""
    if not how.dry:
        with TemporaryDirectory() as scratch:
            _execute(names, Scratch.create(Path(scratch), config), QuietDisplay(), how)


def _require_another_place(root: Path, how: How) -> None:
    if how.manifest and Path(how.manifest).resolve().parent == root.resolve():
        raise UsageError(f"--from-manifest '{how.manifest}' is of the run in '{root}' itself: give another --output")


def go_on(
    names: Sequence[str],
    root: Path,
    options: Mapping[str, Given],
    before: Callable[[RunDirectory], None] = lambda run: None,
) -> None:
    """Runs those stages of the existing run in `root`, its settings changed where one is given; `before`, that."""
    how, settings = _parted(options)
    if this_job().rank > 0:
        return
    display, run = open_display(quiet=how.quiet, machine=how.machine), RunDirectory.open(root)
    with _alone(root, display):
        if any(value is not None for value in settings.values()):
            run = RunDirectory.create(root, configuration({**settings, "config": str(root / "config.yaml")}))
        before(run)
        _execute(names, run, display, how)


@contextmanager
def _alone(root: Path, display: Display) -> Iterator[None]:
    """While active, the run is this process's, which puts away what it has begun when it is told to end."""
    with terminable(), locked(root) as note:
        if note:
            display.say(note)
        yield


def _reproduce(names: Sequence[str] | None, run: RunDirectory, display: Display, how: How) -> None:
    """`_execute`, and how what it runs on and what comes out compare with the manifest."""
    manifest = read_manifest(Path(str(how.manifest)))
    for difference in differing(manifest, run):
        display.say(f"other   {difference}")
    try:
        _execute(names, run, display, how)
    finally:
        display.say(compared(manifest, run))
