"""The commands. Only click and the standard library are loaded here; a command imports what it needs when called."""

import json
from pathlib import Path
from typing import Any

import click

from atopipe.pipeline.cli.options import (
    SECONDS,
    SPEEDUP,
    Given,
    Number,
    Options,
    configuration_options,
    directory_options,
    gate_options,
    output_options,
    selection_options,
    variant_options,
)
from atopipe.pipeline.cli.sweep.commands import sweep
from atopipe.pipeline.system.errors import UsageError
from atopipe.pipeline.system.text import nearest_or_all


class Commands(click.Group):
    """A group that knows what a mistyped command may have meant."""

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        if args and args[0] not in self.commands and not args[0].startswith("-"):
            raise UsageError(f"unknown command '{args[0]}': {nearest_or_all(args[0], self.commands)}")
        return super().resolve_command(ctx, args)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="atopipe")
def cli() -> None:
    """Structured channel pruning: train and prune an image classifier, and get a small, verified ONNX model.

    \b
    Example:  atopipe run --model resnet50 --target-flops 0.3

    Exit codes: 0 every gate passed, 1 unexpected error, 2 usage, 3 a gate failed, 4 inconclusive, 5 environment or
    data missing, 6 export or parity failure, 130 interrupted.
    """


cli.add_command(sweep)


@cli.command()
@configuration_options
@variant_options
@gate_options
@directory_options
@selection_options
def run(output: str | None, **options: Given) -> None:
    """Train, shrink, export, validate, bundle and report in one command; complete stages are skipped.

    \b
    Example:  atopipe run --model resnet50 --target-flops 0.3
              atopipe run --model resnet18 --target-flops 0.5 --data imagefolder:photos --output runs/photos
              atopipe run --from-manifest runs/photos/manifest.json --output runs/again
    """
    from atopipe.pipeline.cli.run import start

    start(None, output, options)


@cli.command()
@configuration_options
@directory_options
def train(output: str | None, **options: Given) -> None:
    """Train and prune only: the first stage of a run, and the dense network if --baseline is given.

    \b
    Example:  atopipe train --model resnet50 --target-flops 0.3 --output runs/first
    """
    from atopipe.pipeline.cli.run import start
    from atopipe.pipeline.stages import STAGES

    start([stage.name for stage in STAGES if stage.distributed], output, options)


def stage_command(name: str, summary: str, options: Options = lambda command: command) -> click.Command:
    """A command that runs one later stage on an existing run directory; its `options` change the run's settings."""

    @click.argument("run_dir", type=click.Path(path_type=Path))
    @options
    @output_options
    def command(run_dir: Path, **given: Given) -> None:
        from atopipe.pipeline.cli.run import go_on

        go_on([name], run_dir, given)

    text = f"{summary}\n\n\b\nExample:  atopipe {name} runs/first"
    return click.command(name, help=text)(command)


cli.add_command(stage_command("shrink", "Remove the pruned channels, and prove that the output is unchanged."))
cli.add_command(stage_command("export", "Write model.onnx and, for comparison, dense.onnx."))
cli.add_command(
    stage_command(
        "quantize", "Make fp16 and int8 variants of model.onnx; validate decides which are delivered.", variant_options
    )
)
cli.add_command(
    stage_command("validate", "Test parity, accuracy and latency in ONNX Runtime, and judge the gates.", gate_options)
)
cli.add_command(stage_command("bundle", "Pack the model with everything a device needs, and test it without torch."))


@cli.command()
@click.argument("run_dir", type=click.Path(path_type=Path))
@click.option(
    "--add", type=click.Path(path_type=Path), metavar="FILE", help="Output of the bundle's infer.py --bench --json."
)
@output_options
def report(run_dir: Path, add: Path | None, **given: Given) -> None:
    """Write report.html, summary.md and junit.xml; --add includes measurements of another machine.

    \b
    Example:  atopipe report runs/first
              atopipe report runs/first --add device.json
    """
    from atopipe.pipeline.cli.run import go_on, report_with

    report_with(add, run_dir, given) if add else go_on(["report"], run_dir, given)


@cli.command()
@click.argument("run_dir", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def why(run_dir: Path, as_json: bool) -> None:
    """List out-of-date stages and what changed.

    \b
    Example:  atopipe why runs/first
    """
    from atopipe.pipeline.cli.status import explain_run

    explain_run(run_dir, as_json=as_json)


@cli.command()
@click.argument("run_dir", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def verify(run_dir: Path, as_json: bool) -> None:
    """Compare every file of a run with its recorded digest; list missing, changed and extra files.

    \b
    Example:  atopipe verify runs/first
    """
    from atopipe.pipeline.cli.status import verify_run

    verify_run(run_dir, as_json=as_json)


@cli.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def doctor(as_json: bool) -> None:
    """Check packages, GPU, execution providers, processors, memory and disk, and report problems.

    \b
    Example:  atopipe doctor
    """
    from atopipe.pipeline.cli.status import examine_machine

    examine_machine(as_json=as_json)


@cli.command()
@click.argument("first", type=click.Path(path_type=Path))
@click.argument("second", type=click.Path(path_type=Path))
@click.option("--threads", type=click.IntRange(1, 1024), default=1, help="CPU threads per model (default 1).")
@click.option(
    "--provider",
    type=click.Choice(["cpu", "cuda", "tensorrt"]),
    default="cpu",
    help="Execution provider (default cpu); on a GPU, images and logits stay in its memory.",
)
@click.option("--batches", default="1", metavar="N,N,...", help="Batch sizes (default 1); the verdict uses the first.")
@click.option(
    "--seconds",
    type=Number(SECONDS),
    default=10.0,
    help="Measuring time per batch size (default 10).",
)
@click.option(
    "--min-speedup",
    type=Number(SPEEDUP),
    default=1.0,
    metavar="TIMES",
    help="Required speed-up of the second model over the first (default 1).",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def bench(first: Path, second: Path, batches: str, as_json: bool, **how: Any) -> None:
    """Time two ONNX models, their runs interleaved, and say whether the second is faster: pass, fail or inconclusive.

    \b
    Example:  atopipe bench dense.onnx model.onnx --batches 1,8 --min-speedup 1.5
    """
    from atopipe.pipeline.cli import bench as timed

    found = timed.bench(first, second, batches=timed.sizes_of(batches), **how)
    click.echo(json.dumps(found.as_dict(), indent=2) if as_json else found.as_text())
    if failure := found.failure():
        raise failure


@cli.command()
@configuration_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def inspect(as_json: bool, **options: Given) -> None:
    """Show what can be pruned, what cannot and why, and the smallest possible network.

    With a target, also check removal, export and parity on a randomly initialised copy.

    \b
    Example:  atopipe inspect --model resnet50
              atopipe inspect --model convnext_tiny --input-size 224 --target-flops 0.5
    """
    from atopipe.pipeline.cli.inspect import inspect_model, show
    from atopipe.pipeline.cli.settings import settings_of

    inspection = inspect_model(settings_of(options))
    if as_json:
        click.echo(json.dumps(inspection.as_dict(), indent=2))
    else:
        show(inspection)


@cli.command()
@configuration_options
@click.option(
    "--pack",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Write the networks that a device has to time, and probe.py, into this new folder.",
)
@click.option("--json", "as_json", is_flag=True, help="The same as JSON.")
def profile(pack: Path | None, as_json: bool, **options: Given) -> None:
    """Time the network at random widths: what takes its time, and what latency is reachable, here or on a device.

    \b
    Example:  atopipe profile --model mobilenet_v2 --input-size 224
              atopipe profile --model mobilenet_v2 --pack pack, then on the device: python pack/probe.py pack
    """
    from atopipe.pipeline.cli.profile import profile_network, write_device_pack
    from atopipe.pipeline.cli.settings import settings_of

    config = settings_of(options)
    if pack is not None:
        write_device_pack(config, pack)
        click.echo(f"wrote   {pack}: copy it to the device, run 'python {pack.name}/probe.py {pack.name}' there")
        return
    found = profile_network(config)
    click.echo(json.dumps(found.as_dict(), indent=2) if as_json else found.as_text())


@cli.command()
@click.option("--dvc", is_flag=True, help="Write dvc.yaml, for `dvc repro`.")
@click.option("--github", is_flag=True, help="Write .github/workflows/atopipe.yml, which runs and uploads the report.")
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Settings of the run, created if the file does not exist (default params.yaml with --dvc, else atopipe.yaml).",
)
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    default="runs/atopipe",
    metavar="DIR",
    help="The run directory (default runs/atopipe).",
)
@click.option(
    "--install",
    "requirement",
    metavar="SOURCE",
    help="What the workflow's pip installs atopipe from (default: where this one was installed from).",
)
@click.option("--force", is_flag=True, help="Replace dvc.yaml and the workflow; never replaces the settings.")
def init(dvc: bool, github: bool, config: Path | None, output: Path, requirement: str | None, force: bool) -> None:
    """Write a dvc.yaml or a GitHub Actions workflow that runs atopipe with the gates of a configuration file.

    \b
    Example:  atopipe init --dvc
              atopipe init --github --config photos.yaml --install ./vendor/atopipe
    """
    from atopipe.pipeline.cli.init import write_starters

    if not (dvc or github):
        raise UsageError("atopipe init needs --dvc, --github or both")
    config = config or Path("params.yaml" if dvc else "atopipe.yaml")
    for path in write_starters(config, output, dvc=dvc, github=github, force=force, requirement=requirement):
        click.echo(f"wrote   {path}")
