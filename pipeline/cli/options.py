"""The options of the commands: what makes a configuration, what starts a run, what is shown, what must hold."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click

from atopipe.pipeline.config.settings import GATES, STARTING, TRAINING, VARIANTS, Limits, Setting
from atopipe.pipeline.data.load import source_names
from atopipe.pipeline.system.errors import UsageError

Command = TypeVar("Command", bound=Callable[..., Any])
Options = Callable[[Callable[..., Any]], Callable[..., Any]]  # adds options to a command
Given = str | tuple[str, ...] | bool | None  # what an option came with; None where it was left out

SECONDS, SPEEDUP = Limits(0, 3600, low_is_out=True), Limits(0, 10**6, low_is_out=True)


class Number(click.ParamType):  # type: ignore[type-arg]  # generic from click 8.3 on
    """A number above the low limit, up to the high one; UsageError, which names the option, for nan, inf and others."""

    name = "number"

    def __init__(self, limits: Limits) -> None:
        self.limits = limits

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        high = math.inf if self.limits.high is None else self.limits.high
        if not (self.limits.low < number <= high and math.isfinite(number)):
            flag = param.opts[0] if param else "a value"
            raise UsageError(f"{flag} is {value}, but must be a number {self.limits.words()}")
        return number


def configuration_options(command: Command) -> Command:
    """The options that make a configuration; each has an environment variable ATOPIPE_<NAME>."""
    file = _given("--config", metavar="FILE", help="YAML file of settings; options given here override it.")
    return _added([file, *map(_option, TRAINING)], command)


def starting_options(command: Command) -> Command:
    """The options that only a run has that begins with training."""
    return _added([*map(_option, STARTING)], command)


def directory_options(command: Command) -> Command:
    """The options of commands that start a run directory."""
    options = [
        *map(_option, STARTING),
        _given("--output", metavar="DIR", help="Run directory (default runs/MODEL-DATA-TARGET-SEED)."),
        click.option(
            "--update",
            is_flag=True,
            help="Change the settings of an existing run: the stages they concern run again, the others are skipped.",
        ),
        click.option("--tensorboard", is_flag=True, help="Log to the run's folder tensorboard/."),
        click.option("--mlflow", is_flag=True, help="Log to MLflow (default ./mlflow.db)."),
    ]
    return _added(options, output_options(command))


def variant_options(command: Command) -> Command:
    """The option that says which variants are made."""
    return _added([*map(_option, VARIANTS)], command)


def gate_options(command: Command) -> Command:
    """The options that say what the delivered network must reach."""
    return _added([*map(_option, GATES)], command)


def selection_options(command: Command) -> Command:
    """The options that say which stages a run goes through."""
    options = [
        click.option("--from", "first", metavar="STAGE", help="Run this stage and all later ones again."),
        click.option("--until", "last", metavar="STAGE", help="Stop after this stage."),
        click.option("--dry-run", "dry", is_flag=True, help="Only list the stages that would run, and why."),
        click.option(
            "--from-manifest",
            "manifest",
            metavar="FILE",
            help="Repeat the run of this manifest.json; other options override it.",
        ),
        click.option(
            "--reuse",
            metavar="RUN_DIR",
            help="Take over complete stages of another run that would come out the same, e.g. its baseline.",
        ),
    ]
    return _added(options, command)


def output_options(command: Command) -> Command:
    """The options that say what is printed and what is done again."""
    options = [
        click.option("--json", "as_json", is_flag=True, help="Print metrics as JSON; messages go to stderr."),
        click.option("--quiet", is_flag=True, help="Print errors only."),
        click.option(
            "--force", is_flag=True, help="Run complete stages again, and replace a run with another configuration."
        ),
    ]
    return _added(options, command)


def _added(options: Sequence[Callable[[Command], Command]], command: Command) -> Command:
    """The command with the options, shown in their order."""
    return functools.reduce(lambda decorated, option: option(decorated), reversed(options), command)


def _option(setting: Setting) -> Callable[[Command], Command]:
    words = setting.help.replace("{sources}", ", ".join(source_names()))
    if setting.several:
        return _given(setting.option, metavar=setting.value, help=words, multiple=True)
    return _given(setting.option, metavar=setting.value, help=words)


def _given(name: str, **settings: Any) -> Callable[[Command], Command]:
    """An option that is absent unless it is given, on the command line or by its environment variable."""
    flag = name.partition("/")[0]
    return click.option(name, default=None, envvar=f"ATOPIPE_{flag[2:].replace('-', '_').upper()}", **settings)
