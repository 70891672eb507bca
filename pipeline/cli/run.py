"""The commands that run stages: `run`, `train`, and one command per later stage."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import click

from atopipe.pipeline.api import Outcome, Selection, exclusive, run
from atopipe.pipeline.cli.options import Given
from atopipe.pipeline.cli.settings import RunOptions, configuration, parted
from atopipe.pipeline.cli.status import show_plan
from atopipe.pipeline.config.schema import Config
from atopipe.pipeline.report.devices import add_device
from atopipe.pipeline.report.terminal import Display, QuietDisplay, open_display
from atopipe.pipeline.report.verdicts import failure, verdicts_of
from atopipe.pipeline.rundir.directory import RunDirectory
from atopipe.pipeline.rundir.manifest import compared, differing, read_manifest
from atopipe.pipeline.system.errors import UsageError
from atopipe.pipeline.system.job import this_job


def start(names: Sequence[str] | None, output: str | None, options: Mapping[str, Given]) -> None:
    """Runs those stages, or all, of the run that the options describe, in its new or existing directory."""
    chosen, settings = parted(options)
    config = configuration(settings, chosen.manifest)
    root = Path(output) if output else _default_output(config)
    selection = Selection(None if names is None else tuple(names), chosen.first, chosen.last)
    if this_job().rank > 0:
        if not chosen.dry:
            run(config, root, stages=selection, force=chosen.force, update=chosen.update)
        return
    _require_another_place(root, chosen)
    RunDirectory.check(root, config, force=chosen.may_replace)
    if chosen.dry:
        show_plan(RunDirectory(root, config), selection, chosen)
        return
    display = open_display(quiet=chosen.quiet, as_json=chosen.as_json)
    display.say(f"output  {root}")
    carry_out = _reproduce if chosen.manifest else _run
    _finish(carry_out(config, root, selection, chosen, display), chosen)


def go_on(names: Sequence[str], root: Path, options: Mapping[str, Given]) -> None:
    """Runs those stages of the existing run in `root`, its settings changed where one is given."""
    chosen, settings = parted(options)
    if this_job().rank > 0:
        return
    display, existing = open_display(quiet=chosen.quiet, as_json=chosen.as_json), RunDirectory.open(root)
    changed = any(value is not None for value in settings.values())
    config = configuration({**settings, "config": str(root / "config.yaml")}) if changed else existing.config
    _finish(_run(config, root, Selection(tuple(names)), chosen, display), chosen)


def report_with(device: Path, root: Path, options: Mapping[str, Given]) -> None:
    """Adds what another machine measured to the existing run in `root`, and reports again.

    Where the run has a budget in latency for another device, the verdicts are its own from then on, and raised.
    """
    existing = RunDirectory.open(root)
    with exclusive(root, QuietDisplay()):
        add_device(existing, device)
    go_on(["report"], root, {**options, "force": True})
    if existing.config.latency_table is not None and (error := failure(verdicts_of(existing), root)):
        raise error


def _run(config: Config, root: Path, selection: Selection, chosen: RunOptions, display: Display) -> Outcome:
    return run(
        config,
        root,
        stages=selection,
        force=chosen.force,
        update=chosen.update,
        reuse=chosen.reuse,
        display=display,
        trackers=chosen.trackers,
    )


def _reproduce(config: Config, root: Path, selection: Selection, chosen: RunOptions, display: Display) -> Outcome:
    """The run, and how what it runs on and what comes out compare with the manifest."""
    manifest = read_manifest(Path(str(chosen.manifest)))
    with exclusive(root, display):
        for difference in differing(manifest, RunDirectory.create(root, config, force=chosen.may_replace)):
            display.say(f"differs {difference}")
    try:
        return _run(config, root, selection, chosen, display)
    finally:
        display.say(compared(manifest, RunDirectory(root, config)))


def _finish(outcome: Outcome, chosen: RunOptions) -> None:
    """Prints the metrics where they are asked for, and raises what the gates say, which becomes the exit code."""
    if chosen.as_json:
        click.echo(json.dumps(dict(outcome.metrics), indent=2))
    if error := failure(outcome.verdicts, outcome.directory):
        raise error


def _require_another_place(root: Path, chosen: RunOptions) -> None:
    if chosen.manifest and Path(chosen.manifest).resolve().parent == root.resolve():
        raise UsageError(f"--from-manifest '{chosen.manifest}' is of the run in '{root}' itself: give another --output")


def _default_output(config: Config) -> Path:
    """runs/resnet50-digits-0.3-seed0."""
    words = (config.model.name, config.data.source.rstrip("/").rpartition("/")[2], *_target_words(config))
    safe = "-".join("".join(c if c.isalnum() or c in "._" else "-" for c in word).strip("-") for word in words)
    return Path("runs") / f"{safe}-seed{config.seed}"


def _target_words(config: Config) -> list[str]:
    """0.3 for a FLOPs target; other costs are named."""
    return [target.written if cost == "flops" else f"{cost}{target.written}" for cost, target in config.targets.items()]
