"""The commands that look and change nothing: `why`, `verify`, `doctor`."""

from pathlib import Path

import click

from atopipe.pipeline.api import ALL, Selection, select
from atopipe.pipeline.api import verify as problems_of
from atopipe.pipeline.cli.settings import RunOptions, show_entries
from atopipe.pipeline.cli.tools.doctor import examine
from atopipe.pipeline.rundir.directory import RunDirectory
from atopipe.pipeline.rundir.lock import in_use_by
from atopipe.pipeline.rundir.plan import plan
from atopipe.pipeline.system.errors import MissingError


def explain_run(root: Path, *, as_json: bool) -> None:
    """Prints for every stage of the run in `root` whether it would run, and why."""
    show_plan(RunDirectory.open(root), ALL, RunOptions(as_json=as_json))


def verify_run(root: Path, *, as_json: bool) -> None:
    """Prints what is missing, changed or extra in `root`; raises MissingError if anything is."""
    problems = problems_of(root)
    show_entries(problems, as_json=as_json)
    if problems and (user := in_use_by(root)):
        raise MissingError(f"'{root}' is in use by {user}, which is still writing: verify it again when that has ended")
    if problems:
        files = "1 file is" if len(problems) == 1 else f"{len(problems)} files are"
        raise MissingError(
            f"'{root}': {files} missing, changed or extra: remove extra files, "
            "restore the others from a copy or run their stage again with --from"
        )
    if not as_json:
        click.echo(f"'{root}' is intact: every file matches its digest")


def examine_machine(*, as_json: bool) -> None:
    """Prints what this machine offers; raises MissingError if something stands in the way of a run."""
    findings = examine()
    show_entries(findings, as_json=as_json)
    if wrong := [finding.name for finding in findings if finding.remedy]:
        raise MissingError(f"problems found: {', '.join(wrong)}: see the fix beside each")


def show_plan(run: RunDirectory, selection: Selection, chosen: RunOptions) -> None:
    """Prints which of the selected stages would run, and why."""
    stages, forced = select(run.config, selection, force=chosen.force)
    show_entries(plan(stages, run, forced), as_json=chosen.as_json)
