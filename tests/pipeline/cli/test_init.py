"""`atopipe init`: what it writes is accepted by those who read it, and names what a run really leaves."""

import json
import os
import shlex
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml

from atopipe.pipeline.cli.commands import cli
from atopipe.pipeline.cli.init import IN_GIT, requirement_of
from atopipe.pipeline.cli.main import main
from atopipe.pipeline.config.load import load_config
from atopipe.pipeline.rundir.layout import RESULT

WORKFLOW = Path(".github/workflows/atopipe.yml")
GITHUB = ("init", "--github", "--install", "./vendor/atopipe")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def dvc_stage() -> dict[str, Any]:
    (stage,) = yaml.safe_load(Path("dvc.yaml").read_text(encoding="utf-8"))["stages"].values()
    return dict(stage)


def outputs() -> list[str]:
    return [path for kind in ("outs", "metrics") for out in dvc_stage()[kind] for path in out]


def workflow_steps() -> list[dict[str, Any]]:
    content = yaml.safe_load(WORKFLOW.read_text(encoding="utf-8"))
    return list(content["jobs"]["deliver"]["steps"])


def is_accepted(command: str) -> bool:
    """Whether our own command line takes it, and the configuration in it."""
    program, name, *arguments = shlex.split(command)
    context = cli.commands[name].make_context(name, arguments)
    load_config(Path(context.params["config"]))
    return program == "atopipe"


def test_both_files_and_a_configuration_that_works(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*GITHUB, "--dvc"]) == 0
    written = ("params.yaml", "dvc.yaml", ".gitignore", ".github/workflows/atopipe.yml")
    assert capsys.readouterr().out == "".join(f"wrote   {name}\n" for name in written)
    commands = [dvc_stage()["cmd"], *(step["run"] for step in workflow_steps() if "run" in step)]
    assert commands[1] == "pip install ./vendor/atopipe"
    assert commands[0] == commands[2]
    assert is_accepted(commands[0])
    assert load_config(Path("params.yaml")).gates.min_accuracy == 0.9


def test_the_configuration_is_named_as_its_reader_expects() -> None:
    main([*GITHUB])
    assert Path("atopipe.yaml").exists()
    assert not Path("params.yaml").exists()


def test_the_outputs_are_what_a_run_leaves(here: Path, finished: Path) -> None:
    shutil.copy(finished / "config.yaml", "params.yaml")
    shutil.copy(finished / "tiny_for_all.py", here)
    assert main([*GITHUB, "--dvc", "--output", "out"]) == 0
    uploaded = next(step["with"]["path"] for step in workflow_steps() if "upload" in step.get("uses", "")).split()
    (plot,) = (path for plot in yaml.safe_load(Path("dvc.yaml").read_text())["plots"] for path in plot)
    assert [path for path in (*outputs(), *uploaded, plot) if not (finished / path).exists()] == []
    assert "out/stages" in outputs()  # all of them, whichever a later configuration asks for


def test_the_report_is_uploaded_even_if_a_gate_fails() -> None:
    main([*GITHUB])
    upload = next(step for step in workflow_steps() if "upload-artifact" in step.get("uses", ""))
    assert upload["if"] == "always()"
    assert "runs/atopipe/report.html" in upload["with"]["path"].split()


@pytest.mark.skipif(find_spec("check_jsonschema") is None, reason="check-jsonschema is not installed")
def test_the_workflow_is_one_by_githubs_schema() -> None:
    main([*GITHUB, "--config", "a 'b' #c.yaml", "--output", "runs/: x"])
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.github-workflows", str(WORKFLOW)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout
    words = shlex.split(workflow_steps()[-2]["run"])
    assert words == ["atopipe", "run", "--config", "a 'b' #c.yaml", "--output", "runs/: x", "--update"]


def test_everything_that_a_run_reads_is_a_parameter_or_a_dependency(here: Path) -> None:
    (here / "pkg").mkdir()
    (here / "photos").mkdir()
    (here / "pkg/nets.py").touch()
    (here / "start.safetensors").touch()
    (here / "mine.yaml").write_text("{epochs: 3}")
    (here / "params.yaml").write_text(
        "{model: {name: 'pkg.nets:net', weights: start.safetensors}, data: 'imagefolder:photos', target_flops: 0.5, "
        "recipe: mine.yaml}"
    )
    assert main(["init", "--dvc"]) == 0
    assert dvc_stage()["deps"] == ["pkg/nets.py", "start.safetensors", "photos"]
    assert dvc_stage()["params"] == [{"params.yaml": None}, {"mine.yaml": None}]


@pytest.mark.parametrize(
    ("origin", "wanted"),
    [
        ({}, "atopipe==1.2"),
        ({"url": "https://a.b/c.git", "vcs_info": {"vcs": "git", "commit_id": "12ab"}}, "git+https://a.b/c.git@12ab"),
        ({"url": "https://a.b/atopipe.whl", "archive_info": {}}, "https://a.b/atopipe.whl"),
        ({"url": "file://{here}/vendor/my%20atopipe", "dir_info": {}}, "./vendor/my atopipe"),
    ],
)
def test_the_workflow_installs_what_is_installed_here(origin: dict[str, Any], wanted: str, here: Path) -> None:
    assert requirement_of({key: _placed(value, here) for key, value in origin.items()}, "1.2") == wanted


def _placed(value: object, here: Path) -> object:
    return value.format(here=here) if isinstance(value, str) else value


@pytest.mark.parametrize("beside_its_source", [False, True])
def test_a_place_that_github_cannot_reach_is_refused(
    here: Path, beside_its_source: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tests themselves run on such an atopipe."""
    if beside_its_source:
        (here / "atopipe.egg-info").mkdir()
        (here / "atopipe.egg-info/PKG-INFO").write_text("Metadata-Version: 2.4\nName: atopipe\nVersion: 9.9\n")
        monkeypatch.syspath_prepend(here)
    assert main(["init", "--github"]) == 2
    assert capsys.readouterr().err == (
        "atopipe: this atopipe was installed from a place that GitHub cannot reach: add --install with a URL, or with "
        "a wheel or folder of this repository, like './vendor/atopipe'\n"
    )
    assert not Path("atopipe.yaml").exists()


def test_what_git_ignores_already_stays(here: Path) -> None:
    Path(".gitignore").write_text("mine\n__pycache__/")
    for _ in range(2):
        main(["init", "--dvc", "--force"])
        ignored = Path(".gitignore").read_text().splitlines()
        assert ignored[:2] == ["mine", "__pycache__/"]
        assert ignored[2:] == ["/runs/atopipe/*", "!/runs/atopipe/config.yaml", "!/runs/atopipe/metrics.json"]


def test_nothing_is_replaced_without_force(capsys: pytest.CaptureFixture[str]) -> None:
    Path("dvc.yaml").write_text("mine")
    Path("params.yaml").write_text("{model: resnet50, target_flops: 0.3}")
    assert main([*GITHUB, "--dvc"]) == 2
    assert capsys.readouterr().err == "atopipe: 'dvc.yaml' exists: add --force to replace it\n"
    assert Path("dvc.yaml").read_text() == "mine"
    assert not WORKFLOW.exists()
    assert main([*GITHUB, "--dvc", "--force"]) == 0
    assert dvc_stage()["cmd"].startswith("atopipe run ")
    assert Path("params.yaml").read_text() == "{model: resnet50, target_flops: 0.3}"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "atopipe init needs --dvc, --github or both"),
        (["--dvc", "--output", "/runs"], "'/runs' lies outside the working directory: give a path below it, like "),
        (["--dvc", "--config", "../a.yaml"], "'../a.yaml' lies outside the working directory: give a path below it, "),
        (["--dvc", "--config", "bad.yaml"], "unknown configuration key 'modle': did you mean model?"),
        (["--dvc", "--output", "a${b}"], "the name 'a${b}' holds '${' or a control character: rename it"),
        (["--dvc", "--config", "data.yaml"], r"the name 'x\x1b' holds '${' or a control character: rename it"),
        (["--github", "--install", "x\n      - run: y"], r"the name 'x\n      - run: y' holds '${{' or a control "),
        (["--github", "--install", "x", "--output", "${{ a }}"], "the name '${{ a }}' holds '${{' or a control "),
    ],
)
def test_what_cannot_work_is_refused(arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("bad.yaml").write_text("{modle: resnet50, target_flops: 0.3}")
    Path("x\x1b").mkdir()
    Path("data.yaml").write_text('{model: resnet18, data: "imagefolder:x\\e", target_flops: 0.3}')
    before = sorted(Path().iterdir())
    assert main(["init", *arguments]) == 2
    assert capsys.readouterr().err.startswith(f"atopipe: {sentence}")
    assert sorted(Path().iterdir()) == before


SETTINGS = """
model: tiny_for_dvc:net
target_flops: 0.6
recipe: {epochs: 4, batch_size: 32, align: 1}
validation: {latency_s: 0.1}
preflight: false
threads: 1
device: cpu
"""
NET = """
from torch import nn

def net(num_classes):
    body = nn.Conv2d(3, 10, 3, stride=2, padding=1), nn.BatchNorm2d(10), nn.ReLU()
    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(160, num_classes))
"""


@pytest.fixture
def repository(here: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A git repository with a tiny network, its settings, and a pipeline with a store beside it."""
    program = here / "bin/atopipe"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m atopipe.pipeline "$@"\n')
    program.chmod(0o755)
    names = {f"GIT_{role}_{part}": "tester" for role in ("AUTHOR", "COMMITTER") for part in ("NAME", "EMAIL")}
    places = {"PATH": f"{program.parent}{os.pathsep}{os.environ['PATH']}", "HOME": str(here)}
    for name, value in {**names, **places, "DVC_NO_ANALYTICS": "1"}.items():
        monkeypatch.setenv(name, value)
    (here / "work").mkdir()
    monkeypatch.chdir(here / "work")
    Path("tiny_for_dvc.py").write_text(NET)
    Path("params.yaml").write_text(SETTINGS)
    assert main(["init", "--dvc"]) == 0
    git("init", "--quiet")
    dvc("init", "--quiet")
    dvc("remote", "add", "--default", "store", str(here / "store"))
    commit()
    return here / "work"


def said(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def git(*arguments: str) -> str:
    return said("git", *arguments)


def dvc(*arguments: str) -> str:
    return said(sys.executable, "-m", "dvc", *arguments)


def commit() -> list[str]:
    """Everything that git takes, and its names."""
    git("add", "--all")
    git("commit", "--quiet", "--message", "as it is")
    return git("ls-files").split()


def kept_flops() -> float:
    return float(json.loads(Path("runs/atopipe/metrics.json").read_text())["flops.ratio"])


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(find_spec("dvc") is None, reason="DVC is not installed")
def test_dvc_runs_again_what_a_change_makes_necessary(repository: Path, here: Path) -> None:
    stages = [f"stages/{name}/{RESULT}" for name in ("train", "report")]
    dvc("repro")
    assert kept_flops() == 0.6
    assert "runs/atopipe/metrics.json" in dvc("metrics", "show", "--md")
    in_git = commit()
    assert [name for name in in_git if name.startswith("runs/")] == [f"runs/atopipe/{name}" for name in IN_GIT]

    Path("params.yaml").write_text(SETTINGS.replace("0.6", "0.5") + "gates: {min_accuracy: 0.01}\n")
    assert json.loads(dvc("params", "diff", "--json"))["params.yaml"]["target_flops"]["new"] == 0.5
    dvc("repro")
    assert kept_flops() == 0.5
    trained = [(repository / "runs/atopipe" / name).read_bytes() for name in stages]
    Path("params.yaml").write_text(SETTINGS.replace("0.6", "0.5") + "gates: {min_accuracy: 0.02}\n")
    dvc("repro")
    judged = [(repository / "runs/atopipe" / name).read_bytes() for name in stages]
    assert [new == old for new, old in zip(judged, trained, strict=True)] == [True, False]
    assert commit() == in_git

    dvc("exp", "run", "--set-param", "target_flops=0.4")
    assert kept_flops() == 0.4
    commit()
    dvc("push")
    git("clone", "--quiet", str(repository), str(here / "clone"))
    os.chdir(here / "clone")
    dvc("pull")
    assert "Data and pipelines are up to date." in dvc("repro")
    assert said("atopipe", "verify", "runs/atopipe")
    assert said(*dvc_stage()["cmd"].split()).count("unchanged, skipped") == 6
