"""`atopipe init`: what it writes is accepted by those who read it, and names what a run really leaves."""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from atopipe.pipeline.cli.commands import cli
from atopipe.pipeline.cli.main import main
from atopipe.pipeline.config.load import load_config

ROOT = Path(__file__).parents[3]
DVC = shutil.which("dvc")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def dvc_file() -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load(Path("dvc.yaml").read_text(encoding="utf-8"))
    return content


def outputs() -> list[str]:
    return [path for stage in dvc_file()["stages"].values() for out in stage["outs"] for path in out]


def workflow() -> dict[str, Any]:
    content = yaml.safe_load(Path(".github/workflows/atopipe.yml").read_text(encoding="utf-8"))
    job: dict[str, Any] = content["jobs"]["deliver"]
    return job


def is_accepted(command: str) -> bool:
    """Whether our own command line takes it, and the configuration in it."""
    program, name, *arguments = shlex.split(command)
    context = cli.commands[name].make_context(name, arguments)
    load_config(Path(context.params["config"]))
    return program == "atopipe"


def test_both_files_and_a_configuration_that_works(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["init", "--dvc", "--github"]) == 0
    assert capsys.readouterr().out == "wrote   atopipe.yaml\nwrote   dvc.yaml\nwrote   .github/workflows/atopipe.yml\n"
    commands = [stage["cmd"] for stage in dvc_file()["stages"].values()]
    commands += [step["run"].strip() for step in workflow()["steps"] if step.get("run", "").startswith("atopipe")]
    assert [command.split()[1] for command in commands] == ["train", "run", "run"]
    assert [command for command in commands if not is_accepted(command)] == []
    assert load_config(Path("atopipe.yaml")).gates.min_accuracy == 0.9


def test_the_outputs_are_what_a_run_leaves(here: Path, finished: Path) -> None:
    shutil.copy(finished / "config.yaml", "atopipe.yaml")
    shutil.copy(finished / "tiny_for_all.py", here)
    assert main(["init", "--dvc", "--github", "--output", "out"]) == 0
    metrics = [path for out in dvc_file()["stages"]["deliver"]["metrics"] for path in out]
    uploaded = next(step["with"]["path"] for step in workflow()["steps"] if "upload" in step.get("uses", "")).split()
    plotted = [path for plot in dvc_file()["plots"] for path in plot]
    assert metrics == ["out/metrics.json"]
    assert [path for path in [*outputs(), *metrics, *uploaded, *plotted] if not (finished / path).exists()] == []
    left = {f"out/stages/{stage.name}" for stage in (finished / "out/stages").iterdir()}
    assert left <= set(outputs())


def test_the_report_is_uploaded_even_if_a_gate_fails() -> None:
    main(["init", "--github"])
    upload = next(step for step in workflow()["steps"] if "upload-artifact" in step.get("uses", ""))
    assert upload["if"] == "always()"
    assert "runs/atopipe/report.html" in upload["with"]["path"].split()


def test_training_depends_on_the_users_code_data_and_weights(here: Path) -> None:
    (here / "pkg").mkdir()
    (here / "photos").mkdir()
    (here / "pkg/nets.py").touch()
    (here / "start.safetensors").touch()
    (here / "atopipe.yaml").write_text(
        "{model: {name: 'pkg.nets:net', weights: start.safetensors}, data: 'imagefolder:photos', target_flops: 0.5}"
    )
    main(["init", "--dvc"])
    assert dvc_file()["stages"]["train"]["deps"] == ["atopipe.yaml", "pkg/nets.py", "start.safetensors", "photos"]
    assert dvc_file()["stages"]["deliver"]["deps"] == ["atopipe.yaml", "runs/atopipe/stages/train"]


def test_nothing_is_replaced_without_force(capsys: pytest.CaptureFixture[str]) -> None:
    Path("dvc.yaml").write_text("mine")
    Path("atopipe.yaml").write_text("{model: resnet50, target_flops: 0.3}")
    assert main(["init", "--github", "--dvc"]) == 2
    assert capsys.readouterr().err == "atopipe: 'dvc.yaml' exists: add --force to replace it\n"
    assert Path("dvc.yaml").read_text() == "mine"
    assert not Path(".github").exists()
    assert main(["init", "--github", "--dvc", "--force"]) == 0
    assert "train" in dvc_file()["stages"]
    assert Path("atopipe.yaml").read_text() == "{model: resnet50, target_flops: 0.3}"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "atopipe init needs --dvc, --github or both"),
        (["--dvc", "--output", "/runs"], "'/runs' lies outside the working directory: give a path below it, like "),
        (["--dvc", "--config", "../a.yaml"], "'../a.yaml' lies outside the working directory: give a path below it, "),
        (["--dvc", "--config", "bad.yaml"], "unknown configuration key 'modle': did you mean model?"),
    ],
)
def test_what_cannot_work_is_refused(arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("bad.yaml").write_text("{modle: resnet50, target_flops: 0.3}")
    assert main(["init", *arguments]) == 2
    assert capsys.readouterr().err.startswith(f"atopipe: {sentence}")
    assert not Path("dvc.yaml").exists()


@pytest.mark.slow
@pytest.mark.skipif(DVC is None, reason="DVC is not installed")
def test_dvc_runs_it_once_and_then_finds_nothing_to_do(here: Path, finished: Path) -> None:
    shutil.copy(finished / "config.yaml", "atopipe.yaml")
    shutil.copy(finished / "tiny_for_all.py", here)
    program = here / "bin/atopipe"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m atopipe.pipeline "$@"\n')
    program.chmod(0o755)
    places = {"PATH": f"{program.parent}{os.pathsep}{os.environ['PATH']}", "DVC_NO_ANALYTICS": "1"}

    def dvc(*arguments: str) -> str:
        command = [str(DVC), *arguments]
        return subprocess.run(
            command, env=os.environ | places, capture_output=True, text=True, check=True, timeout=240
        ).stdout

    main(["init", "--dvc"])
    dvc("init", "--no-scm", "--quiet")
    dvc("repro")
    assert "Data and pipelines are up to date." in dvc("repro")
    assert "flops.ratio" in dvc("metrics", "show")
    shutil.rmtree("runs/atopipe/stages")
    dvc("checkout")
    assert (
        "unchanged, skipped"
        in subprocess.run(
            [str(program), "run", "--config", "atopipe.yaml", "--output", "runs/atopipe"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    )
