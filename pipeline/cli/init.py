"""Files that make other tools run atopipe: dvc.yaml, a workflow of GitHub Actions, and a first configuration."""

import json
import shlex
from collections.abc import Iterable, Iterator, Mapping
from importlib.metadata import distributions
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import yaml

from atopipe.pipeline.config.load import load_config, read_yaml
from atopipe.pipeline.config.schema import Config
from atopipe.pipeline.rundir.external_inputs import outside_files
from atopipe.pipeline.system.errors import MissingError, UsageError
from atopipe.pipeline.system.files import write_text

DVC = Path("dvc.yaml")
GITIGNORE = Path(".gitignore")
WORKFLOW = Path(".github/workflows/atopipe.yml")
FOR_PEOPLE = ("report.html", "summary.md", "junit.xml", "bundle.zip")
IN_GIT = ("config.yaml", "metrics.json")  # small, and worth a look in a diff

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
# Written by `atopipe init --dvc`. `dvc repro` runs again what settings, code, data or weights have changed, and fails
# where a gate does. Outputs persist: atopipe itself knows which of its stages are current, and skips those.
"""

WORKFLOW_HEAD = """\
# Written by `atopipe init --github`. The job fails where a gate does; the summary is on its page, the report attached.
"""


def write_starters(
    config: Path, run: Path, *, dvc: bool, github: bool, force: bool, requirement: str | None = None
) -> list[Path]:
    """Writes the files that are wanted, and `config` where there is none; returns what was written.

    Nothing is written if one of them exists, except with `force`; an existing configuration is never changed, and
    so do the lines of an existing .gitignore. `requirement`: what pip installs atopipe from, see `workflow_text`.
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
    if dvc:
        texts |= {DVC: dvc_text(settings, config, run), GITIGNORE: _with_ignored(run)}
    if github:
        texts[WORKFLOW] = workflow_text(config, run, requirement or _own_requirement())
    for path, text in texts.items():
        _write(path, text)
    return list(texts)


def dvc_text(settings: Config, config: Path, run: Path) -> str:
    """A pipeline of one stage: which parts of it have to run again is decided more finely by atopipe itself.

    All settings are parameters, so that `dvc params diff` names those that changed and experiments can set them.
    """
    files = [config.as_posix(), *_recipe_file(config)]
    kept = ("stages", "bundle", "manifest.json", *FOR_PEOPLE)
    stage: dict[str, Any] = {
        "cmd": _command(config, run),
        "deps": list(dict.fromkeys(_local_inputs(settings))),
        "params": [{file: None} for file in files],
        "outs": [_kept(run, "config.yaml", cache=False), *(_kept(run, name) for name in kept)],
        "metrics": [_kept(run, "metrics.json", cache=False)],
    }
    history = (run / "stages/train/history.json").as_posix()
    content = {
        "stages": {"atopipe": {key: value for key, value in stage.items() if value}},
        "plots": [{history: {"x": "epoch", "y": "val_accuracy"}}],
    }
    _require_plain([run, *files, *stage["deps"]], forbidden="${")
    return DVC_HEAD + _as_yaml(content)


def workflow_text(config: Path, run: Path, requirement: str) -> str:
    """A job that runs everything and keeps the report whatever came out.

    `requirement` is what pip installs atopipe from: a URL, a file or folder of the repository, or a name on an index.
    """
    _require_plain([config, run, requirement], forbidden="${{")
    uploaded = {
        "name": "atopipe",
        "if-no-files-found": "warn",
        "path": "\n".join((run / name).as_posix() for name in (*FOR_PEOPLE, "metrics.json")) + "\n",
    }
    steps: list[dict[str, Any]] = [
        {"uses": "actions/checkout@v4"},
        {"uses": "actions/setup-python@v5", "with": {"python-version": "3.12"}},
        {"run": shlex.join(["pip", "install", requirement])},
        {"run": _command(config, run)},
        {"if": "always()", "uses": "actions/upload-artifact@v4", "with": uploaded},
    ]
    content = {
        "name": "atopipe",
        "on": {"push": None, "workflow_dispatch": None},
        "permissions": {"contents": "read"},
        "jobs": {"deliver": {"runs-on": "ubuntu-latest", "timeout-minutes": 350, "steps": steps}},
    }
    return WORKFLOW_HEAD + _as_yaml(content)


def _own_requirement() -> str:
    """What installs this atopipe. A source tree on the import path has metadata too; only that of pip has INSTALLER."""
    found = list(distributions(name="atopipe"))
    installed = next((each for each in found if each.read_text("INSTALLER")), found[0])
    return requirement_of(json.loads(installed.read_text("direct_url.json") or "{}"), installed.version)


def requirement_of(origin: Mapping[str, Any], version: str) -> str:
    """What pip installs again from where something came from, as PEP 610 records it; empty if that was an index.

    A repository is taken at its commit, a folder by its path in the working directory, outside of which UsageError.
    """
    if not origin:
        return f"atopipe=={version}"
    url = str(origin["url"])
    if version_control := origin.get("vcs_info"):
        return f"{version_control['vcs']}+{url}@{version_control['commit_id']}"
    if url.startswith("https://"):
        return url
    place, here = Path(unquote(urlsplit(url).path)), Path.cwd()
    if place.is_relative_to(here):
        return f"./{place.relative_to(here).as_posix()}"
    remedy = "add --install with a URL, or with a wheel or folder of this repository, like './vendor/atopipe'"
    raise UsageError(f"this atopipe was installed from a place that GitHub cannot reach: {remedy}")


def _with_ignored(run: Path) -> str:
    """The .gitignore that is there, with lines that leave the files of a run to DVC."""
    present = GITIGNORE.read_text(encoding="utf-8") if GITIGNORE.exists() else ""
    lines = ["__pycache__/", f"/{run.as_posix()}/*", *(f"!/{run.as_posix()}/{name}" for name in IN_GIT)]
    missing = [line for line in lines if line not in present.splitlines()]
    before = present if present.endswith("\n") or not present else f"{present}\n"
    return before + "".join(f"{line}\n" for line in missing)


def _command(config: Path, run: Path) -> str:
    return shlex.join(["atopipe", "run", "--config", config.as_posix(), "--output", run.as_posix(), "--update"])


def _kept(run: Path, name: str, **settings: bool) -> Mapping[str, Any]:
    return {(run / name).as_posix(): {**settings, "persist": True}}


class _Dumper(yaml.SafeDumper):
    """Writes a text of several lines as such."""


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _represent_text)


def _as_yaml(content: Mapping[str, Any]) -> str:
    return yaml.dump(content, Dumper=_Dumper, sort_keys=False, width=1000, allow_unicode=True)


def _require_plain(names: Iterable[str | Path], forbidden: str) -> None:
    """UsageError if a name has a control character, or what begins an expression of the tool that reads it."""
    for name in map(str, names):
        if forbidden in name or not name.isprintable():
            raise UsageError(f"the name {name!r} holds '{forbidden}' or a control character: rename it")


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
