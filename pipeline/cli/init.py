"""Files that make other tools run atopipe: dvc.yaml, a workflow of GitHub Actions, and a first configuration."""

import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from atopipe.pipeline.config.load import load_config, read_yaml
from atopipe.pipeline.config.schema import Config
from atopipe.pipeline.rundir.external_inputs import outside_files
from atopipe.pipeline.stages import stages_of
from atopipe.pipeline.system.errors import MissingError, UsageError
from atopipe.pipeline.system.files import write_text

DVC = Path("dvc.yaml")
WORKFLOW = Path(".github/workflows/atopipe.yml")
FOR_PEOPLE = ("report.html", "summary.md", "junit.xml", "bundle.zip")

CONFIGURATION = """\
# What `atopipe run --config` trains, and what it must reach; docs/reference/configuration.md lists every key.
model:
  name: resnet18
target_flops: 0.5
data:
  source: digits
gates:
  min_accuracy: 0.9
"""

DVC_HEAD = """\
# Written by `atopipe init --dvc`. `dvc repro` trains and delivers anew where something has changed, and fails where a
# gate does; `dvc metrics diff` compares. Outputs persist, because atopipe itself knows which of them are current.
"""

WORKFLOW_TEXT = """\
# Written by `atopipe init --github`. Fails where a gate of {config} does; the summary is on the page of the job.
name: atopipe
on:
  push:
  workflow_dispatch:
permissions:
  contents: read
jobs:
  deliver:
    runs-on: ubuntu-latest
    timeout-minutes: 350
    steps:
      - uses: actions/checkout@v4
      - uses: actions/setup-python@v5
        with:
          python-version: "3.12"
      - run: pip install atopipe
      - run: |
          {command}
      - if: always()
        uses: actions/upload-artifact@v4
        with:
          name: atopipe
          if-no-files-found: warn
          path: |
{paths}
"""


def write_starters(config: Path, run: Path, *, dvc: bool, github: bool, force: bool) -> list[Path]:
    """Writes the files that are wanted, and `config` where there is none; returns what was written.

    Nothing is written if one of them exists, except with `force`; an existing configuration always stays as it is.
    Raises UsageError for such a file, for a place outside the working directory, and for a bad configuration.
    """
    _require_inside(config)
    _require_inside(run)
    wanted = [path for path, is_wanted in ((DVC, dvc), (WORKFLOW, github)) if is_wanted]
    for path in wanted:
        if path.exists() and not force:
            raise UsageError(f"'{path}' exists: add --force to replace it")
    texts: dict[Path, str] = {} if config.exists() else {config: CONFIGURATION}
    settings = load_config(config) if config.exists() else load_config(None, yaml.safe_load(CONFIGURATION))
    writers = {DVC: lambda: dvc_text(settings, config, run), WORKFLOW: lambda: workflow_text(config, run)}
    texts |= {path: writers[path]() for path in wanted}
    for path, text in texts.items():
        _write(path, text)
    return list(texts)


def dvc_text(settings: Config, config: Path, run: Path) -> str:
    """A pipeline of two stages, so that what is delivered can be judged anew without training anew."""
    trained = [f"stages/{stage.name}" for stage in stages_of(settings) if stage.distributed]
    delivered = [f"stages/{stage.name}" for stage in stages_of(settings) if not stage.distributed]
    needed = [config.as_posix(), *dict.fromkeys((*_recipe_file(config), *_local_inputs(settings)))]
    stages = {
        "train": {
            "cmd": _command("train", config, run),
            "deps": needed,
            "outs": [_kept(run, "config.yaml", cache=False), *(_kept(run, name) for name in trained)],
        },
        "deliver": {
            "cmd": _command("run", config, run),
            "deps": [config.as_posix(), *((run / name).as_posix() for name in trained)],
            "outs": [_kept(run, name) for name in (*delivered, *FOR_PEOPLE)],
            "metrics": [_kept(run, "metrics.json", cache=False)],
        },
    }
    history = (run / "stages/train/history.json").as_posix()
    plots = [{history: {"x": "epoch", "y": "val_accuracy"}}]
    return DVC_HEAD + yaml.safe_dump({"stages": stages, "plots": plots}, sort_keys=False, width=1000)


def workflow_text(config: Path, run: Path) -> str:
    """A job that runs everything and keeps the report whatever came out."""
    paths = [f"            {(run / name).as_posix()}" for name in (*FOR_PEOPLE, "metrics.json")]
    return WORKFLOW_TEXT.format(config=config, command=_command("run", config, run), paths="\n".join(paths))


def _command(name: str, config: Path, run: Path) -> str:
    return shlex.join(["atopipe", name, "--config", config.as_posix(), "--output", run.as_posix(), "--quiet"])


def _kept(run: Path, name: str, **settings: bool) -> Mapping[str, Any]:
    return {(run / name).as_posix(): {**settings, "persist": True}}


def _recipe_file(config: Path) -> list[str]:
    """The recipe that the configuration takes from a file of the user's."""
    recipe = read_yaml(config).get("recipe") if config.exists() else None
    return [recipe] if isinstance(recipe, str) and Path(recipe).is_file() else []


def _local_inputs(settings: Config) -> Iterator[str]:
    """Files and folders of the user's that the training reads: data, weights, the code of a network or a data set."""
    here = Path.cwd()
    found = outside_files(settings)
    for file in (file for name in ("model code", "data code", "weights") for file in found.get(name, {}).values()):
        if file.resolve().is_relative_to(here):
            yield file.resolve().relative_to(here).as_posix()
    place = Path(settings.data.source.partition(":")[2]).expanduser()
    if "data" in found and place.exists():
        yield place.as_posix()


def _require_inside(path: Path) -> None:
    """Both tools know the repository only."""
    if path.is_absolute() or ".." in path.parts:
        raise UsageError(f"'{path}' lies outside the working directory: give a path below it, like 'runs/atopipe'")


def _write(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, text)
    except OSError as error:
        raise MissingError(f"'{path}' cannot be written ({error.strerror}): change the folder's permissions") from None
