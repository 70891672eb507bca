"""From the options of `atopipe sweep` to its runs, and to the executor that carries them out."""

import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import yaml

from atopipe.pipeline.cli.options import Given
from atopipe.pipeline.cli.settings import given_settings
from atopipe.pipeline.config.load import merged_config, with_target
from atopipe.pipeline.config.plain_yaml import argument_value
from atopipe.pipeline.config.schema import Config
from atopipe.pipeline.config.settings import TARGETS
from atopipe.pipeline.sweep.executors.interface import Executor
from atopipe.pipeline.sweep.executors.pool import LocalPool, slots_of
from atopipe.pipeline.sweep.executors.slurm import Slurm
from atopipe.pipeline.sweep.plan import Axis, MakeConfig, Values, plan
from atopipe.pipeline.sweep.report import as_text
from atopipe.pipeline.sweep.run import Result, sweep, sweep_json
from atopipe.pipeline.system.errors import AtopipeError, UsageError
from atopipe.pipeline.system.machine import available_processors
from atopipe.pipeline.system.text import nearest_or_all, printable
from atopipe.pipeline.tracking.mirror import NEEDS, require_installed

DEFAULT_OUTPUT = Path("runs/sweep")
AS_WRITTEN = ("model.name", *TARGETS)  # settings whose values are text, whatever YAML makes of them


def start(
    *,
    models: str | None,
    seeds: str | None,
    settings: Sequence[str],
    independent: bool,
    output: Path | None,
    executor: str,
    address: str | None,
    jobs: int | None,
    quiet: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Runs the sweep, prints its table, and raises an error that names the runs that failed."""
    trackers = [name for name in NEEDS if options.pop(name)]
    for name in trackers:
        require_installed(name)
    root, say = output or DEFAULT_OUTPUT, _speaker(quiet=quiet, as_json=as_json)
    axes = [*_axes(models, seeds, settings, options)]
    _require_one_name(axes)
    members = plan(axes, _config_maker(options, {axis.setting for axis in axes}), independent=independent)
    done = sweep(
        members,
        root,
        _executor(executor, Request(jobs, address, members[0].config, root, say)),
        title=_title(members[0].config, axes),
        trackers=trackers,
        say=say,
    )
    if as_json:
        click.echo(sweep_json(root))
    elif not quiet and done.curve.points:  # Slurm has only begun
        click.echo(f"\n{as_text(done.curve)}\nreport {root / 'sweep.html'}")
    _require_all(done, len(members))


def _axes(models: str | None, seeds: str | None, settings: Sequence[str], options: dict[str, Given]) -> Iterator[Axis]:
    """What was given one or several values, in the order of the parts of a member's name."""
    given = [("model.name", models), *(_parted(setting) for setting in settings)]
    given += [(setting, _taken(options, setting)) for setting in TARGETS]
    for setting, text in [*given, ("seed", seeds)]:
        if text is not None:
            values = tuple(value.strip() for value in text.split(","))
            if not all(values):
                raise UsageError(f"{Axis(setting, values).name} is '{text}', but must be values separated by commas")
            yield Axis(setting, values)


def _taken(options: dict[str, Given], setting: str) -> str | None:
    value = options.pop(setting)
    return None if value is None else str(value)


def _parted(text: str) -> tuple[str, str]:
    key, equals, values = text.partition("=")
    if not equals or not key:
        raise UsageError(f"--set is '{text}', but must be KEY=V1,V2, e.g. '--set recipe.epochs=12,24'")
    return key.strip(), values


def _require_one_name(axes: Sequence[Axis]) -> None:
    names = [axis.setting for axis in axes]
    for axis in axes:
        if names.count(axis.setting) > 1:
            raise UsageError(f"{axis.setting} is given values twice: give all of them in one option")


def _config_maker(options: Mapping[str, Given], varied: set[str]) -> MakeConfig:
    raw, values = given_settings(options)
    for setting in varied & values.keys():
        raise UsageError(
            f"{Axis(setting, ()).name} gives values of {setting}, which another option sets: leave one out"
        )

    def make(chosen: Values) -> Config:
        return with_target(merged_config(raw, {**values, **{key: _value(key, text) for key, text in chosen.items()}}))

    return make


def _value(setting: str, text: object) -> object:
    if setting in AS_WRITTEN or not isinstance(text, str):
        return text
    try:
        return argument_value(text)
    except (yaml.YAMLError, ValueError, RecursionError):
        raise UsageError(f"--set {setting}={text} is not valid YAML: close its brackets and quotes") from None


def _title(config: Config, axes: Sequence[Axis]) -> str:
    models = next((axis.values for axis in axes if axis.setting == "model.name"), (config.model.name,))
    return f"{', '.join(models)} on {config.data.source}"


def _speaker(*, quiet: bool, as_json: bool) -> Callable[[str], None]:
    return (lambda line: None) if quiet else lambda line: click.echo(printable(line), err=as_json)


@dataclass(frozen=True)
class Request:
    """What an executor is asked for: so many `jobs` at a time, or as many as fit, of runs like `config`.

    `address`: of the cluster, for executors that have one.
    """

    jobs: int | None
    address: str | None
    config: Config
    root: Path
    say: Callable[[str], None]


def _executor(name: str, request: Request) -> Executor:
    if name not in EXECUTORS:
        raise UsageError(f"there is no executor '{name}': {nearest_or_all(name, EXECUTORS)}")
    if request.address and name != "ray":
        raise UsageError(f"--address is that of a Ray cluster, but --executor is {name}: add --executor ray")
    return EXECUTORS[name](request)


def _local(request: Request) -> Executor:
    cores = sorted(os.sched_getaffinity(0)) if sys.platform == "linux" else list(range(available_processors()))
    gpus = [] if request.config.device == "cpu" else _gpus()
    return LocalPool(slots_of(request.jobs or len(gpus) or 1, cores, gpus))


def _slurm(request: Request) -> Executor:
    return Slurm(request.root, request.jobs, request.say)


def _ray(request: Request) -> Executor:
    from atopipe.pipeline.sweep.executors.ray_core import RayCluster

    return RayCluster(request.address, request.jobs, wants_gpu=request.config.device != "cpu")


def _gpus() -> list[str]:
    """The GPUs that this process sees, by the names that CUDA has for them."""
    import torch

    seen = os.environ.get("CUDA_VISIBLE_DEVICES")
    return seen.split(",") if seen else [str(number) for number in range(torch.cuda.device_count())]


EXECUTORS: Mapping[str, Callable[[Request], Executor]] = {
    "local": _local,
    "slurm": _slurm,
    "ray": _ray,
}


def _require_all(done: Result, count: int) -> None:
    if done.failures:
        failed = "; ".join(f"{name}: {reason}" for name, reason in done.failures.items())
        complete = count - len(done.curve.missing)
        raise AtopipeError(f"{complete} of {count} runs are complete; {failed}; the same command tries these again")
