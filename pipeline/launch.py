"""From the options of a command to stages that run: configuration, run directory, lock, order, what is said at the end.

Each function is one or two commands of `cli`, which loads this module when such a command is called.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click

from atopipe.pipeline.build_server import append_step_summary
from atopipe.pipeline.config import Config, load_config, merged_config, parse_arguments
from atopipe.pipeline.display import Display, QuietDisplay, open_display
from atopipe.pipeline.distributed import this_job
from atopipe.pipeline.doctor import Finding, examine
from atopipe.pipeline.errors import MissingError, UsageError
from atopipe.pipeline.flags import FLAGS
from atopipe.pipeline.interruption import terminable
from atopipe.pipeline.lock import locked
from atopipe.pipeline.manifest import compared, differing, read_manifest
from atopipe.pipeline.nearest import nearest_or_all
from atopipe.pipeline.options import Given
from atopipe.pipeline.plan import Step, plan
from atopipe.pipeline.run_directory import RunDirectory, Scratch
from atopipe.pipeline.runner import Stage, execute, execute_together
from atopipe.pipeline.stages import stages_of
from atopipe.pipeline.stages.report import summary_of
from atopipe.pipeline.stages.validate import raise_verdict
from atopipe.pipeline.tracking.mirror import NEEDS, mirrored
from atopipe.pipeline.verification import Problem, verify


@dataclass(frozen=True)
class How:
    """The options that are no settings of the run.

    `machine`, `quiet`: what is printed; `force`, `first`, `last`: which stages run; `dry`: none does; `manifest`: the
    file that describes the run; `tensorboard`, `mlflow`: where it is mirrored.
    """

    machine: bool = False
    quiet: bool = False
    force: bool = False
    first: str | None = None
    last: str | None = None
    dry: bool = False
    manifest: str | None = None
    tensorboard: bool = False
    mlflow: bool = False

    @property
    def trackers(self) -> list[str]:
        return [name for name in NEEDS if getattr(self, name)]

    @property
    def is_afresh(self) -> bool:
        """Whether training begins anew, whatever is there."""
        return self.force or self.first == "train"


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


def explain_run(root: Path, *, machine: bool) -> None:
    """Prints for every stage of the run in `root` whether it would run, and why."""
    _show_plan(None, RunDirectory.open(root), How(machine=machine))


def verify_run(root: Path, *, machine: bool) -> None:
    """Prints what is missing, changed or extra in `root`; raises MissingError if anything is."""
    problems = verify(RunDirectory.open(root))
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


def _list(entries: Sequence[Finding | Problem | Step], *, machine: bool) -> None:
    """One line for each, or all of them as JSON."""
    if machine:
        click.echo(json.dumps([asdict(entry) for entry in entries], indent=2))
        return
    for entry in entries:
        click.echo(entry.as_text())


def configuration(options: Mapping[str, Given], manifest: str | None = None) -> Config:
    """Manifest or file, recipe, environment and command line, in this order."""
    given: dict[str, Any] = {name: value for name, value in options.items() if value is not None and value != ()}
    if "model_args" in given:
        given["model_args"] = parse_arguments(given["model_args"])
    file = given.pop("config", None)
    if file and manifest:
        raise UsageError("--config and --from-manifest both describe a whole run: give one of them")
    names = {flag[2:].replace("-", "_"): path for path, flag in FLAGS.items()} | {"recipe": "recipe"}
    values = {names[name]: value for name, value in given.items()}
    if manifest:
        return merged_config(read_manifest(Path(manifest))["config"], values)
    return load_config(Path(str(file)) if file else None, values)


def _parted(options: Mapping[str, Given]) -> tuple[How, dict[str, Given]]:
    """How the command is to be carried out, and the settings of the run."""
    names = {field.name for field in fields(How)}
    how: dict[str, Any] = {name: value for name, value in options.items() if name in names}
    return How(**how), {name: value for name, value in options.items() if name not in names}


@contextmanager
def _alone(root: Path, display: Display) -> Iterator[None]:
    """While active, the run is this process's, which puts away what it has begun when it is told to end."""
    with terminable(), locked(root) as note:
        if note:
            display.say(note)
        yield


def _default_output(config: Config) -> Path:
    """runs/resnet50-digits-0.3-seed0."""
    words = (config.model.name, config.data.source.rstrip("/").rpartition("/")[2], *_target_words(config))
    safe = "-".join("".join(c if c.isalnum() or c in "._" else "-" for c in word).strip("-") for word in words)
    return Path("runs") / f"{safe}-seed{config.seed}"


def _target_words(config: Config) -> list[str]:
    """0.3 for a FLOPs target; other costs are named."""
    return [f"{target:g}" if cost == "flops" else f"{cost}{target:g}" for cost, target in config.targets.items()]


def _selection(names: Sequence[str] | None, run: RunDirectory, how: How) -> tuple[list[Stage], list[str]]:
    """The stages to go through, and the names of those that run even if they are complete."""
    stages = stages_of(run.config)
    known = [stage.NAME for stage in stages]
    first, last = _position("--from", how.first, known), _position("--until", how.last, known)
    chosen = [stage for stage in stages[: None if last is None else last + 1] if names is None or stage.NAME in names]
    again = known if how.force else known[len(known) if first is None else first :]
    return chosen, [stage.NAME for stage in chosen if stage.NAME in again]


def _position(flag: str, name: str | None, known: Sequence[str]) -> int | None:
    """Where in the order the stage stands; None where none is named."""
    if name is not None and name not in known:
        raise UsageError(f"{flag} is {name}, which is no stage of this run: {nearest_or_all(name, known)}")
    return None if name is None else known.index(name)


def _show_plan(names: Sequence[str] | None, run: RunDirectory, how: How) -> None:
    chosen, forced = _selection(names, run, how)
    _list(plan(chosen, run, forced), machine=how.machine)


def _reproduce(names: Sequence[str] | None, run: RunDirectory, display: Display, how: How) -> None:
    """`_execute`, and how what it runs on and what comes out compare with the manifest."""
    manifest = read_manifest(Path(str(how.manifest)))
    for difference in differing(manifest, run):
        display.say(f"other   {difference}")
    try:
        _execute(names, run, display, how)
    finally:
        display.say(compared(manifest, run))


def _execute(names: Sequence[str] | None, run: RunDirectory, display: Display, how: How) -> None:
    """Runs those stages, or all, shows what came out, and raises what the gates say."""
    known, (chosen, forced), job = stages_of(run.config), _selection(names, run, how), this_job()
    if not chosen:
        raise UsageError(f"the run in '{run.root}' has fp32 only: add '--variants fp32,fp16,int8' to name what to make")
    for name in forced:
        run.drop_checkpoints(name)
    if job.size > 1:
        execute_together(job, chosen, known, run, display, forced=forced)
    else:
        execute(chosen, known, run, display, forced=forced)
    if job.rank > 0:
        return
    if how.machine:
        click.echo(json.dumps(run.metrics(known), indent=2))
    done = {stage.NAME for stage in chosen}
    if "report" in done:
        summary = summary_of(run)
        display.closing(summary)
        append_step_summary(summary.as_markdown())
    if "validate" in done:
        raise_verdict(run)
