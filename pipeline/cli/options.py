"""The options of the commands: what makes a configuration, what starts a run, what is shown, what must hold."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click

from atopipe.pipeline.data.load import source_names

Command = TypeVar("Command", bound=Callable[..., Any])
Options = Callable[[Callable[..., Any]], Callable[..., Any]]  # adds options to a command
Given = str | tuple[str, ...] | bool | None  # what an option came with; None where it was left out

TARGET_HELP = (
    "--target-flops 0.3: the delivered network costs at most 30 % of the dense network's FLOPs (keep 30 %, "
    "prune 70 %); or 30%, or an amount like 1.2G (2 x multiply-accumulates)."
)


def configured(command: Command) -> Command:
    """The options that make a configuration; each has an environment variable ATOPIPE_<NAME>."""
    options = [
        _option(
            "--model",
            help="torchvision classifier, CIFAR network (resnet56), timm/NAME, your_pkg.mod:factory or net.py:factory.",
        ),
        _option("--model-args", metavar="K=V", multiple=True, help="An argument of its builder; may be repeated."),
        _option("--weights", metavar="FILE", help="Start from these: safetensors, or a state dict saved by torch."),
        _option("--keep", metavar="PATTERN", multiple=True, help="Layers whose widths stay whole, e.g. 'layer4.*'."),
        _option("--only", metavar="PATTERN", multiple=True, help="Layers outside of which all widths stay whole."),
        _option("--target-flops", metavar="TARGET", help=TARGET_HELP),
        _option("--target-params", metavar="TARGET", help="The same for parameters (0.4, 40%, 4M); both may be given."),
        _option(
            "--align", metavar="N", help="Widths are multiples of N channels, or auto (default): 4, 8 or 16 by width."
        ),
        _option(
            "--search",
            metavar="NAME",
            help="Where the mask comes from: controller (default), magnitude, random, uniform.",
        ),
        _option(
            "--live-shrink/--no-live-shrink", help="Cut the network as soon as its masked channels are zero (default)."
        ),
        _option(
            "--precision",
            metavar="FORMAT",
            help="auto (default: bfloat16 where the device has it), float32 or bfloat16.",
        ),
        _option("--compile/--no-compile", help="Run the weight step through torch.compile."),
        _option(
            "--data",
            metavar="SOURCE",
            help=f"{', '.join(source_names())}; default: digits.",
        ),
        _option("--input-size", metavar="N", help="Pixels of the square input (default: what the images are)."),
        _option("--config", metavar="FILE", help="YAML file of settings; options given here override it."),
        _option("--recipe", metavar="NAME", help="How to train: a recipe's name (default quick) or YAML file."),
        _option("--epochs", metavar="N", help="Epochs of training."),
        _option("--batch-size", metavar="N", help="Images per training step."),
        _option("--seed", metavar="N", help="Seed of everything random (default 0)."),
        _option("--device", metavar="NAME", help="auto (default: CUDA if there, else CPU), cpu or cuda."),
        _option(
            "--checkpoint-minutes", metavar="N", help="Minutes of training that an interruption may cost (default 10)."
        ),
        _option("--threads", metavar="N", help="CPU threads (default: all that this process may use)."),
    ]
    return _added(options, command)


def written(command: Command) -> Command:
    """The options of commands that start a run directory."""
    options = [
        _option(
            "--baseline/--no-baseline", help="Train the dense network as well, by the same recipe, to compare with."
        ),
        _option("--output", metavar="DIR", help="Run directory (default runs/MODEL-DATA-TARGET-SEED)."),
        _option(
            "--preflight/--no-preflight",
            help="Rehearse removal, export and parity before the first epoch (default).",
        ),
        click.option("--tensorboard", is_flag=True, help="Mirror the run in its folder tensorboard/."),
        click.option("--mlflow", is_flag=True, help="Mirror the run in MLflow, by default in ./mlflow.db."),
    ]
    return _added(options, shown(command))


def varied(command: Command) -> Command:
    """The option that says which variants are made."""
    named = "Formats to try, e.g. fp32,fp16,int8; those that pay here are delivered beside fp32 (default fp32 only)."
    return _added([_option("--variants", metavar="NAME,...", help=named)], command)


def gated(command: Command) -> Command:
    """The options that say what the delivered network must reach."""
    options = [
        _option(
            "--max-accuracy-drop",
            metavar="FRACTION",
            help="Top-1 at most so far below the dense network's (0.01: one point); needs --baseline.",
        ),
        _option("--min-accuracy", metavar="FRACTION", help="Top-1 of the ONNX file at least this."),
        _option("--min-speedup", metavar="TIMES", help="At least so many times as fast as the dense network."),
        _option("--max-latency-ms", metavar="MS", help="Median latency of one image at most this."),
        _option("--max-size-mb", metavar="MB", help="The ONNX file at most so large, in millions of bytes."),
        _option(
            "--max-variant-drop",
            metavar="FRACTION",
            help="A variant's top-1 at most so far below that of fp32, or it is dropped (default 0.02).",
        ),
    ]
    return _added(options, command)


def chosen(command: Command) -> Command:
    """The options that say which stages a run goes through."""
    options = [
        click.option("--from", "first", metavar="STAGE", help="Run again from this stage on, complete or not."),
        click.option("--until", "last", metavar="STAGE", help="Stop after this stage."),
        click.option("--dry-run", "dry", is_flag=True, help="Only say which stages would run, and why."),
        click.option(
            "--from-manifest",
            "manifest",
            metavar="FILE",
            help="Run what this manifest.json describes; options given here override it.",
        ),
    ]
    return _added(options, command)


def shown(command: Command) -> Command:
    """The options that say what is printed and what is done again."""
    options = [
        click.option("--json", "as_json", is_flag=True, help="Metrics as JSON on standard output, all else on stderr."),
        click.option("--quiet", is_flag=True, help="Print errors only."),
        click.option(
            "--force", is_flag=True, help="Run again what is complete, and replace another configuration's run."
        ),
    ]
    return _added(options, command)


def _added(options: Sequence[Callable[[Command], Command]], command: Command) -> Command:
    """The command with the options, shown in their order."""
    return functools.reduce(lambda decorated, option: option(decorated), reversed(options), command)


def _option(name: str, **settings: Any) -> Callable[[Command], Command]:
    """A setting: absent unless it is given, on the command line or by its environment variable."""
    flag = name.partition("/")[0]
    return click.option(name, default=None, envvar=f"ATOPIPE_{flag[2:].replace('-', '_').upper()}", **settings)
