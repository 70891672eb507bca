"""The Python entrance: stages that run in a run directory, and what came out."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click

from atopipe.pipeline.config.schema import Config
from atopipe.pipeline.engine.runner import execute, execute_together
from atopipe.pipeline.engine.stage import Stage
from atopipe.pipeline.report.ci import append_step_summary
from atopipe.pipeline.report.results import raise_verdict, results_of, summary_of
from atopipe.pipeline.report.terminal import Display
from atopipe.pipeline.rundir.directory import RunDirectory
from atopipe.pipeline.stages import stages_of
from atopipe.pipeline.system.errors import UsageError
from atopipe.pipeline.system.job import this_job
from atopipe.pipeline.system.text import nearest_or_all
from atopipe.pipeline.tracking.mirror import NEEDS


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


def _default_output(config: Config) -> Path:
    """runs/resnet50-digits-0.3-seed0."""
    words = (config.model.name, config.data.source.rstrip("/").rpartition("/")[2], *_target_words(config))
    safe = "-".join("".join(c if c.isalnum() or c in "._" else "-" for c in word).strip("-") for word in words)
    return Path("runs") / f"{safe}-seed{config.seed}"


def _target_words(config: Config) -> list[str]:
    """0.3 for a FLOPs target; other costs are named."""
    return [target.written if cost == "flops" else f"{cost}{target.written}" for cost, target in config.targets.items()]


def _selection(names: Sequence[str] | None, run: RunDirectory, how: How) -> tuple[list[Stage], list[str]]:
    """The stages to go through, and the names of those that run even if they are complete."""
    stages = stages_of(run.config)
    known = [stage.name for stage in stages]
    first, last = _position("--from", how.first, known), _position("--until", how.last, known)
    chosen = [stage for stage in stages[: None if last is None else last + 1] if names is None or stage.name in names]
    again = known if how.force else known[len(known) if first is None else first :]
    return chosen, [stage.name for stage in chosen if stage.name in again]


def _position(flag: str, name: str | None, known: Sequence[str]) -> int | None:
    """Where in the order the stage stands; None where none is named."""
    if name is not None and name not in known:
        raise UsageError(f"{flag} is {name}, which is no stage of this run: {nearest_or_all(name, known)}")
    return None if name is None else known.index(name)


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
    done = {stage.name for stage in chosen}
    if "report" in done:
        summary = summary_of(run, results_of(run, known[-1].inputs))
        display.closing(summary)
        append_step_summary(summary.as_markdown())
    if "validate" in done:
        raise_verdict(run)
