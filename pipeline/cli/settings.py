"""From the options of a command to the configuration of a run, and how the command is carried out."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import click

from atopipe.pipeline.api import How
from atopipe.pipeline.cli.doctor import Finding
from atopipe.pipeline.cli.options import Given
from atopipe.pipeline.config.flags import FLAGS
from atopipe.pipeline.config.load import load_config, merged_config, parse_arguments
from atopipe.pipeline.config.schema import Config
from atopipe.pipeline.rundir.manifest import read_manifest
from atopipe.pipeline.rundir.plan import Step
from atopipe.pipeline.rundir.verify import Problem
from atopipe.pipeline.system.errors import UsageError


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
