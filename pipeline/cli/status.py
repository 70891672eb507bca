"""The commands that look and change nothing: `why`, `verify`, `doctor`."""

from collections.abc import Sequence
from pathlib import Path

import click

from atopipe.pipeline.api import How, _selection
from atopipe.pipeline.cli.doctor import examine
from atopipe.pipeline.cli.settings import _list
from atopipe.pipeline.rundir.directory import RunDirectory
from atopipe.pipeline.rundir.plan import plan
from atopipe.pipeline.rundir.verify import verify
from atopipe.pipeline.stages import STAGES
from atopipe.pipeline.system.errors import MissingError


def explain_run(root: Path, *, machine: bool) -> None:
    """Prints for every stage of the run in `root` whether it would run, and why."""
    _show_plan(None, RunDirectory.open(root), How(machine=machine))


def verify_run(root: Path, *, machine: bool) -> None:
    """Prints what is missing, changed or extra in `root`; raises MissingError if anything is."""
    problems = verify(RunDirectory.open(root), STAGES)
    _list(problems, machine=machine)
    if problems:
        files = "1 file is" if len(problems) == 1 else f"{len(problems)} files are"
        raise MissingError(
            f"'{root}': {files} not as the stages left them: remove what is extra, "
            "and take the rest from a copy or run its stage again with --from"
        )
    if not machine:
        click.echo(f"'{root}' is as its stages left it")


def examine_machine(*, machine: bool) -> None:
    """Prints what this machine offers; raises MissingError if something stands in the way of a run."""
    findings = examine()
    _list(findings, machine=machine)
    if wrong := [finding.name for finding in findings if finding.remedy]:
        raise MissingError(f"in the way of a run: {', '.join(wrong)}: see the remedy beside each")


def _show_plan(names: Sequence[str] | None, run: RunDirectory, how: How) -> None:
    chosen, forced = _selection(names, run, how)
    _list(plan(chosen, run, forced), machine=how.machine)
