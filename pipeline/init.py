"""`atopipe init`: the command. Only click is loaded here; what it needs is imported when it is called."""

from pathlib import Path

import click

from atopipe.pipeline.errors import UsageError


@click.command()
@click.option("--dvc", is_flag=True, help="Write dvc.yaml, for `dvc repro`.")
@click.option("--github", is_flag=True, help="Write .github/workflows/atopipe.yml, which runs and uploads the report.")
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    default="atopipe.yaml",
    metavar="FILE",
    help="The run's settings (default atopipe.yaml); a first one is written where there is none.",
)
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    default="runs/atopipe",
    metavar="DIR",
    help="The run directory (default runs/atopipe).",
)
@click.option("--force", is_flag=True, help="Replace dvc.yaml and the workflow; the settings always stay.")
def init(dvc: bool, github: bool, config: Path, output: Path, force: bool) -> None:
    """Write what makes DVC or GitHub Actions run atopipe, with the gates of a configuration file.

    \b
    Example:  atopipe init --dvc
              atopipe init --github --config photos.yaml
    """
    from atopipe.pipeline.starters import write_starters

    if not (dvc or github):
        raise UsageError("atopipe init writes nothing by itself: add --dvc, --github or both")
    for path in write_starters(config, output, dvc=dvc, github=github, force=force):
        click.echo(f"wrote   {path}")
