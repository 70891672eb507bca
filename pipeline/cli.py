"""The command line: one command per stage, `run` for all of them, `inspect` before any.

Only click and the standard library are loaded here; a command imports what it needs when it is called.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import click

from atopipe.pipeline.distributed import may_speak, this_job
from atopipe.pipeline.errors import Failure, UsageError, explain
from atopipe.pipeline.nearest import did_you_mean, nearest_or_all
from atopipe.pipeline.options import Given, Options, configured, gated, shown, varied, written

if TYPE_CHECKING:
    from atopipe.pipeline.config import Config
    from atopipe.pipeline.display import Display
    from atopipe.pipeline.run_directory import RunDirectory


class Commands(click.Group):
    """A group that knows what a mistyped command may have meant."""

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        if args and args[0] not in self.commands and not args[0].startswith("-"):
            raise UsageError(f"unknown command '{args[0]}': {nearest_or_all(args[0], self.commands)}")
        return super().resolve_command(ctx, args)


def main(argv: Sequence[str] | None = None) -> int:
    """The process: returns its exit code, and prints what went wrong as one sentence."""
    try:
        cli.main(args=argv, prog_name="atopipe", standalone_mode=False)
    except BaseException as error:
        failure = _failure(error)
        if failure is None:
            raise
        if failure.message and may_speak():
            click.echo(f"atopipe: {failure.message}", err=True)
        return failure.exit_code
    return 0


def _failure(error: BaseException) -> Failure | None:
    if isinstance(error, click.exceptions.Exit):
        return Failure("", error.exit_code)
    if isinstance(error, click.Abort):
        return explain(KeyboardInterrupt())
    if isinstance(error, click.NoSuchOption):
        return Failure(_unknown_option(error), UsageError.exit_code)
    if isinstance(error, click.ClickException):
        return Failure(error.format_message().rstrip("."), error.exit_code)
    return explain(error)


def _unknown_option(error: click.NoSuchOption) -> str:
    parameters = error.ctx.command.params if error.ctx else []
    known = [option for parameter in parameters for option in (*parameter.opts, *parameter.secondary_opts)]
    return f"unknown option '{error.option_name}': {did_you_mean(error.option_name, known) or 'see --help'}"


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="atopipe")
def cli() -> None:
    """Train and prune an image classifier from scratch, and hand over a small, verified ONNX model.

    \b
    Example:  atopipe run --model resnet50 --target-flops 0.3

    Exit codes: 0 every gate passed, 1 unexpected error, 2 usage, 3 a gate failed, 4 inconclusive, 5 environment or
    data missing, 6 export or parity failure, 130 interrupted.
    """


@cli.command()
@configured
@varied
@gated
@written
def run(output: str | None, machine: bool, quiet: bool, force: bool, **options: Given) -> None:
    """Train, shrink, export, validate, bundle and report, in one go; complete stages are skipped.

    \b
    Example:  atopipe run --model resnet50 --target-flops 0.3
              atopipe run --model resnet18 --target-flops 0.5 --data imagefolder:photos --output runs/photos
    """
    _start(None, output, machine=machine, quiet=quiet, force=force, options=options)


@cli.command()
@configured
@written
def train(output: str | None, machine: bool, quiet: bool, force: bool, **options: Given) -> None:
    """Train and prune only: the first stage of a run directory, and the second one where --baseline asks for it.

    \b
    Example:  atopipe train --model resnet50 --target-flops 0.3 --output runs/first
    """
    _start(["train", "baseline"], output, machine=machine, quiet=quiet, force=force, options=options)


def _start(
    names: Sequence[str] | None,
    output: str | None,
    *,
    machine: bool,
    quiet: bool,
    force: bool,
    options: dict[str, Given],
) -> None:
    from atopipe.pipeline.display import QuietDisplay, open_display
    from atopipe.pipeline.run_directory import RunDirectory

    config, job = _configuration(options), this_job()
    job.check_batch(config.recipe.batch_size)
    if job.rank > 0:
        with TemporaryDirectory() as scratch:
            _execute(names, RunDirectory.create(Path(scratch), config), QuietDisplay(), force=force, machine=False)
        return
    run = RunDirectory.create(Path(output) if output else _default_output(config), config, force=force)
    display = open_display(quiet=quiet, machine=machine)
    display.say(f"output  {run.root}")
    _execute(names, run, display, force=force, machine=machine)


def stage_command(name: str, summary: str, options: Options = lambda command: command) -> click.Command:
    """A command that runs one later stage on an existing run directory; its `options` change the run's settings."""

    @click.argument("run_dir", type=click.Path(path_type=Path))
    @options
    @shown
    def command(run_dir: Path, machine: bool, quiet: bool, force: bool, **settings: Given) -> None:
        from atopipe.pipeline.display import open_display

        if this_job().rank > 0:
            return
        display = open_display(quiet=quiet, machine=machine)
        _execute([name], _opened(run_dir, settings), display, force=force, machine=machine)

    text = f"{summary}\n\n\b\nExample:  atopipe {name} runs/first"
    return click.command(name, help=text)(command)


def _opened(root: Path, settings: dict[str, Given]) -> "RunDirectory":
    """The run in `root`, its configuration changed where a setting is given."""
    from atopipe.pipeline.run_directory import RunDirectory

    run = RunDirectory.open(root)
    if all(value is None for value in settings.values()):
        return run
    return RunDirectory.create(root, _configuration({**settings, "config": str(root / "config.yaml")}))


cli.add_command(stage_command("shrink", "Remove what training masked, and prove that nothing else changed."))
cli.add_command(stage_command("export", "Write model.onnx and, for comparison, dense.onnx."))
cli.add_command(
    stage_command("quantize", "Make fp16 and int8 variants of model.onnx, to be tried by validate.", varied)
)
cli.add_command(
    stage_command("validate", "Check parity, accuracy and latency in ONNX Runtime, and judge the gates.", gated)
)
cli.add_command(stage_command("bundle", "Pack the model with all that a device needs, and replay it without torch."))


@cli.command()
@click.argument("run_dir", type=click.Path(path_type=Path))
@click.option(
    "--add", type=click.Path(path_type=Path), metavar="FILE", help="What the bundle's infer.py --bench --json printed."
)
@shown
def report(run_dir: Path, add: Path | None, machine: bool, quiet: bool, force: bool) -> None:
    """Write report.html, summary.md and junit.xml from what the stages and, with --add, other machines measured.

    \b
    Example:  atopipe report runs/first
              atopipe report runs/first --add device.json
    """
    from atopipe.pipeline.devices import add_device
    from atopipe.pipeline.display import open_display
    from atopipe.pipeline.run_directory import RunDirectory

    if this_job().rank > 0:
        return
    run = RunDirectory.open(run_dir)
    if add:
        add_device(run, add)
    display = open_display(quiet=quiet, machine=machine)
    _execute(["report"], run, display, force=force or add is not None, machine=machine)


@cli.command()
@click.argument("first", type=click.Path(path_type=Path))
@click.argument("second", type=click.Path(path_type=Path))
@click.option("--threads", type=click.IntRange(1, 1024), default=1, help="Of each model (default 1).")
@click.option("--batches", default="1", metavar="N,N,...", help="Batch sizes (default 1); the first one is judged.")
@click.option("--seconds", type=click.FloatRange(0, 3600, min_open=True), default=10.0, help="Per batch size.")
@click.option(
    "--min-speedup",
    type=click.FloatRange(0, min_open=True),
    default=1.0,
    metavar="TIMES",
    help="The second must be at least so many times as fast as the first (default 1).",
)
@click.option("--json", "machine", is_flag=True, help="The same as JSON.")
def bench(
    first: Path, second: Path, threads: int, batches: str, seconds: float, min_speedup: float, machine: bool
) -> None:
    """Time two ONNX models in turns, and say whether the second is faster: pass, fail or inconclusive.

    \b
    Example:  atopipe bench dense.onnx model.onnx --batches 1,8 --min-speedup 1.5
    """
    from atopipe.pipeline.bench import bench as measure

    sizes = batches.split(",")
    if not all(size.isascii() and size.isdigit() and int(size) > 0 for size in sizes):
        raise UsageError(f"--batches is '{batches}', but must be whole numbers like 1,8,32")
    numbers = [int(size) for size in sizes]
    found = measure(first, second, threads=threads, batches=numbers, seconds=seconds, min_speedup=min_speedup)
    click.echo(json.dumps(found.as_dict(), indent=2) if machine else found.as_text())
    if failure := found.failure():
        raise failure


@cli.command()
@configured
@click.option("--json", "machine", is_flag=True, help="The same as JSON.")
def inspect(machine: bool, **options: Given) -> None:
    """What of a network can be pruned, what cannot and why, and how small it can become.

    With a target, the removal of a random choice of channels, the export and the parity are tried, too.

    \b
    Example:  atopipe inspect --model resnet50
              atopipe inspect --model convnext_tiny --input-size 224 --target-flops 0.5
    """
    from atopipe.pipeline.inspection import inspect_model, show

    rehearsed = options["target_flops"] is not None or options["target_params"] is not None
    config = _configuration(options if rehearsed else {**options, "target_flops": "1"})
    inspection = inspect_model(config, rehearsed=rehearsed)
    if machine:
        click.echo(json.dumps(inspection.as_dict(), indent=2))
    else:
        show(inspection)


def _configuration(options: dict[str, Given]) -> "Config":
    """File, recipe, environment and command line, in this order."""
    from atopipe.pipeline.config import FLAGS, load_config, parse_arguments

    given: dict[str, Any] = {name: value for name, value in options.items() if value is not None and value != ()}
    if "model_args" in given:
        given["model_args"] = parse_arguments(given["model_args"])
    file = given.pop("config", None)
    names = {flag[2:].replace("-", "_"): path for path, flag in FLAGS.items()} | {"recipe": "recipe"}
    return load_config(Path(str(file)) if file else None, {names[name]: value for name, value in given.items()})


def _default_output(config: "Config") -> Path:
    """runs/resnet50-digits-0.3-seed0."""
    words = (config.model.name, config.data.source.rstrip("/").rpartition("/")[2], *_target_words(config))
    safe = "-".join("".join(c if c.isalnum() or c in "._" else "-" for c in word).strip("-") for word in words)
    return Path("runs") / f"{safe}-seed{config.seed}"


def _target_words(config: "Config") -> list[str]:
    """0.3 for a FLOPs target; other costs are named."""
    return [f"{target:g}" if cost == "flops" else f"{cost}{target:g}" for cost, target in config.targets.items()]


def _execute(
    names: Sequence[str] | None, run: "RunDirectory", display: "Display", *, force: bool, machine: bool
) -> None:
    """Runs those stages, or all, shows what came out, and raises what the gates say."""
    from atopipe.pipeline.build_server import append_step_summary
    from atopipe.pipeline.runner import execute, execute_together
    from atopipe.pipeline.stages import stages_of
    from atopipe.pipeline.stages.report import summary_of
    from atopipe.pipeline.stages.validate import raise_verdict

    known = stages_of(run.config)
    chosen = [stage for stage in known if names is None or stage.NAME in names]
    if not chosen:
        raise UsageError(f"the run in '{run.root}' has fp32 only: add '--variants fp32,fp16,int8' to name what to make")
    job = this_job()
    if job.size > 1:
        execute_together(job, chosen, known, run, display, force=force)
    else:
        execute(chosen, known, run, display, force=force)
    if job.rank > 0:
        return
    if machine:
        click.echo(json.dumps(run.metrics(known), indent=2))
    done = {stage.NAME for stage in chosen}
    if "report" in done:
        summary = summary_of(run)
        display.closing(summary)
        append_step_summary(summary.as_markdown())
    if "validate" in done:
        raise_verdict(run)


if __name__ == "__main__":
    sys.exit(main())
