"""`atopipe sweep`: several runs at once, their curve, and the best of them. Only click is loaded here."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from atopipe.pipeline.cli.options import (
    configuration_options,
    gate_options,
    starting_options,
    variant_options,
)
from atopipe.pipeline.system.errors import UsageError

if TYPE_CHECKING:
    from atopipe.pipeline.sweep.curve import Point

JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
SWEEP_DIR = click.argument("sweep_dir", type=click.Path(path_type=Path))


@click.group(invoke_without_command=True)
@configuration_options
@variant_options
@gate_options
@starting_options
@click.option("--models", metavar="NAME,...", help="Networks to compare.")
@click.option("--seeds", metavar="N,...", help="Seeds to run everything with.")
@click.option(
    "--set", "settings", metavar="KEY=V1,V2", multiple=True, help="Values of any setting, e.g. recipe.epochs=12,24."
)
@click.option("--independent", is_flag=True, help="Train every run by itself, without a shared search.")
@click.option("--output", type=click.Path(path_type=Path), metavar="DIR", help="Sweep directory (default runs/sweep).")
@click.option(
    "--executor", default="local", metavar="NAME", help="Where the runs are carried out: local (default), slurm or ray."
)
@click.option("--address", metavar="HOST:PORT", help="Ray cluster to run in (default: a new one on this machine).")
@click.option("--jobs", type=click.IntRange(1, 4096), metavar="N", help="Runs at a time (default: one per GPU, or 1).")
@click.option("--tensorboard", is_flag=True, help="Each run logs to its folder tensorboard/.")
@click.option("--mlflow", is_flag=True, help="Each run logs to MLflow.")
@click.option("--quiet", is_flag=True, help="Print errors only.")
@JSON
@click.pass_context
def sweep(context: click.Context, /, **options: Any) -> None:
    """Train and prune at several budgets, seeds, networks or settings, and show accuracy against cost.

    A list of targets, separated by commas, shares dense phase and search. The same command again resumes.

    \b
    Example:  atopipe sweep --model resnet50 --target-flops 0.7,0.5,0.3,0.2
              atopipe sweep --models resnet20,resnet56 --target-flops 0.5,0.3 --seeds 0,1,2 --jobs 2
              atopipe sweep pick runs/sweep --max-latency-ms 8
    """
    if context.invoked_subcommand is None:
        from atopipe.pipeline.cli.sweep.start import start

        start(**options)


@sweep.command()
@SWEEP_DIR
@JSON
def status(sweep_dir: Path, as_json: bool) -> None:
    """Show how far every run of a sweep is.

    \b
    Example:  atopipe sweep status runs/sweep
    """
    from dataclasses import asdict

    from atopipe.pipeline.report.tables import aligned
    from atopipe.pipeline.sweep.progress import progress_of
    from atopipe.pipeline.sweep.run import read_plan
    from atopipe.pipeline.sweep.trials import SweepDirectory
    from atopipe.pipeline.system.text import printable

    found = list(progress_of(SweepDirectory(sweep_dir), list(read_plan(sweep_dir).runs)))
    if as_json:
        click.echo(json.dumps([asdict(run) for run in found], indent=2))
        return
    click.echo(aligned([(run.name, run.state, printable(run.detail)) for run in found], ("left", "left", "left")))


@sweep.command()
@SWEEP_DIR
@JSON
def report(sweep_dir: Path, as_json: bool) -> None:
    """Write sweep.html, sweep.json and sweep.csv of what is complete, and print the table.

    \b
    Example:  atopipe sweep report runs/sweep
    """
    from atopipe.pipeline.sweep.report import as_text
    from atopipe.pipeline.sweep.run import report as write

    curve = write(sweep_dir)
    click.echo(json.dumps(curve.as_dict(), indent=2) if as_json else as_text(curve))


def _extremes(points: "Sequence[Point]") -> str:
    """What there is, for a limit that can be had."""
    if not points:
        return "no run is complete"
    latencies = [point.costs["latency_ms"] for point in points if "latency_ms" in point.costs]
    fastest = f", the fastest run takes {min(latencies):.3g} ms" if latencies else ""
    return f"the most accurate run has {max(point.accuracy for point in points):.4f}{fastest}"


@sweep.command()
@SWEEP_DIR
@click.option(
    "--max-latency-ms", type=click.FloatRange(0, min_open=True), metavar="MS", help="The most accurate run within it."
)
@click.option("--min-accuracy", type=click.FloatRange(0, 1), metavar="FRACTION", help="The fastest run that has it.")
@JSON
def pick(sweep_dir: Path, max_latency_ms: float | None, min_accuracy: float | None, as_json: bool) -> None:
    """Print the bundle of the best run within a limit.

    \b
    Example:  atopipe sweep pick runs/sweep --max-latency-ms 8
    """
    from atopipe.pipeline.sweep.curve import best, curve_of
    from atopipe.pipeline.sweep.run import chosen_bundle, read_plan
    from atopipe.pipeline.sweep.trials import SweepDirectory

    if max_latency_ms is None and min_accuracy is None:
        raise UsageError("sweep pick needs a limit: give --max-latency-ms, --min-accuracy or both")
    points = curve_of(SweepDirectory(sweep_dir), read_plan(sweep_dir).runs).points
    found = best(points, max_latency_ms=max_latency_ms, min_accuracy=min_accuracy)
    if found is None:
        raise UsageError(f"no run of '{sweep_dir}' is within the limit: {_extremes(points)}")
    bundle = chosen_bundle(sweep_dir, found.name)
    answer = {"run": found.name, "bundle": str(bundle), "accuracy": found.accuracy, **found.costs}
    click.echo(json.dumps(answer, indent=2) if as_json else str(bundle))
