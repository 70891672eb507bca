"""From the options of a command to the configuration of a run, and how the command is carried out."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import click

from atopipe.pipeline.cli.options import Given
from atopipe.pipeline.cli.tools.doctor import Finding
from atopipe.pipeline.config.load import merged_config, parse_arguments, read_yaml, with_target
from atopipe.pipeline.config.schema import Config
from atopipe.pipeline.config.settings import FLAGS
from atopipe.pipeline.rundir.manifest import read_manifest
from atopipe.pipeline.rundir.plan import Step
from atopipe.pipeline.rundir.verify import Problem
from atopipe.pipeline.system.errors import UsageError
from atopipe.pipeline.tracking.mirror import NEEDS


@dataclass(frozen=True)
class RunOptions:
    """The options of a command that are no settings of the run.

    `as_json`, `quiet`: what is printed; `force`, `first`, `last`: which stages run; `update`: an existing run may take
    on other settings; `dry`: no stage runs; `manifest`: the file that describes the run; `tensorboard`, `mlflow`: where
    it is mirrored.
    """

    as_json: bool = False
    quiet: bool = False
    force: bool = False
    update: bool = False
    first: str | None = None
    last: str | None = None
    dry: bool = False
    manifest: str | None = None
    reuse: str | None = None
    tensorboard: bool = False
    mlflow: bool = False

    @property
    def may_replace(self) -> bool:
        """Whether the output may hold a run of another configuration."""
        return self.force or self.update

    @property
    def trackers(self) -> list[str]:
        return [name for name in NEEDS if getattr(self, name)]


def show_entries(entries: Sequence[Finding | Problem | Step], *, as_json: bool) -> None:
    """One line for each, or all of them as JSON."""
    if as_json:
        click.echo(json.dumps([asdict(entry) for entry in entries], indent=2))
        return
    for entry in entries:
        click.echo(entry.as_text())


def configuration(options: Mapping[str, Given], manifest: str | None = None) -> Config:
    """What `settings_of` gives, which must name a target."""
    return with_target(settings_of(options, manifest))


def settings_of(options: Mapping[str, Given], manifest: str | None = None) -> Config:
    """Manifest or file, recipe, environment and command line, in this order."""
    return merged_config(*given_settings(options, manifest))


def given_settings(options: Mapping[str, Given], manifest: str | None = None) -> tuple[dict[str, Any], dict[str, Any]]:
    """What manifest or file hold, and what overrides it, by dotted names."""
    given: dict[str, Any] = {name: value for name, value in options.items() if value is not None and value != ()}
    if "model_args" in given:
        given["model_args"] = parse_arguments(given["model_args"])
    file = given.pop("config", None)
    if file and manifest:
        raise UsageError("--config and --from-manifest both describe a whole run: give one of them")
    names = {flag[2:].replace("-", "_"): path for path, flag in FLAGS.items()}
    values = {names[name]: value for name, value in given.items()}
    if manifest:
        return read_manifest(Path(manifest))["config"], values
    return read_yaml(Path(str(file))) if file else {}, values


def parted(options: Mapping[str, Given]) -> tuple[RunOptions, dict[str, Given]]:
    """What is no setting of the run, and its settings."""
    names = {field.name for field in fields(RunOptions)}
    chosen: dict[str, Any] = {name: value for name, value in options.items() if name in names}
    return RunOptions(**chosen), {name: value for name, value in options.items() if name not in names}
