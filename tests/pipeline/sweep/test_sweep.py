"""Whole sweeps of a tiny network: ordinary runs, the same bytes, resuming, and what is refused."""

import json
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from atopipe.pipeline.cli.main import main
from atopipe.pipeline.rundir.lock import locked
from atopipe.pipeline.system.files import sha256_file

pytestmark = pytest.mark.slow
NET = """
from torch import nn

def net(num_classes):
    body = nn.Conv2d(3, 16, 3, stride=2, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 24, 3), nn.ReLU()
    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(384, num_classes))
"""
CONFIG = """
model: tiny_for_sweep:net
recipe: {epochs: 2, batch_size: 64, align: 1}
preflight: false
validation: {latency_s: 0.1}
threads: 1
device: cpu
"""
SWEEP = ("sweep", "--config", "config.yaml", "--output", "curve")
TARGETS = ("--target-flops", "0.7,0.3")


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a finished sweep in `curve`."""
    folder, before, path = tmp_path_factory.mktemp("sweep"), Path.cwd(), sys.path.copy()
    (folder / "tiny_for_sweep.py").write_text(NET)
    (folder / "config.yaml").write_text(CONFIG)
    os.chdir(folder)
    assert main([*SWEEP, *TARGETS, "--quiet", "--jobs", "2"]) == 0
    yield folder
    os.chdir(before)
    sys.path[:] = path


def model(run: str) -> str:
    return sha256_file(Path(run) / "stages/export/model.onnx")


def test_members_are_ordinary_runs(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("0.3", "0.7"):
        root = f"curve/runs/{name}"
        for command in ("validate", "bundle", "report"):
            assert main([command, root, "--force", "--quiet"]) in (0, 4), capsys.readouterr().err
        assert main(["verify", root]) == 0
        assert (Path(root) / "bundle" / "model.onnx").exists()


def test_the_curve_is_written_and_shown(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sweep", "report", "curve"]) == 0
    shown = capsys.readouterr().out
    found = json.loads(Path("curve/sweep.json").read_text())
    assert {point["name"] for point in found["points"]} == {"0.3", "0.7"}
    for point in found["points"]:
        metrics = json.loads(Path(f"curve/runs/{point['name']}/metrics.json").read_text())
        assert point["accuracy"] == metrics["accuracy.onnx"]
        assert point["low"] < point["accuracy"] < point["high"]
        assert f"{point['accuracy']:.4f}" in shown
    assert 0 < found["seconds"] < found["alone"]
    assert "runs/0.3/report.html" in Path("curve/sweep.html").read_text()


def test_one_target_is_the_bytes_of_a_run_and_so_is_the_tightest_of_several(work: Path) -> None:
    assert main(["run", "--config", "config.yaml", "--target-flops", "0.3", "--output", "single", "--quiet"]) == 0
    assert main([*SWEEP[:-1], "one", "--target-flops", "0.3", "--quiet"]) == 0
    assert model("single") == model("one/runs/run") == model("curve/runs/0.3")


def test_the_same_command_again_does_nothing_and_another_target_adds_a_run(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.stat().st_mtime_ns for path in Path("curve/runs").rglob("result.json")}
    assert main([*SWEEP, *TARGETS]) == 0
    shown = capsys.readouterr().out
    assert "started" not in shown, shown
    assert main([*SWEEP, "--target-flops", "0.7,0.5,0.3"]) == 0
    shown = capsys.readouterr().out
    assert [line.split()[0] for line in shown.splitlines() if "started" in line] == ["0.5"]
    assert {path: path.stat().st_mtime_ns for path in before} == before
    taken = Path("curve/runs/0.5/events.jsonl").read_text()
    assert '"stage taken over", "stage": "search"' in taken


def test_status_and_pick(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sweep", "status", "curve", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {run["state"] for run in found} == {"complete"}
    assert main(["sweep", "pick", "curve", "--max-latency-ms", "1000"]) == 0
    bundle = Path(capsys.readouterr().out.strip())
    points = json.loads(Path("curve/sweep.json").read_text())["points"]
    assert bundle.parent.name == max(points, key=lambda point: point["accuracy"])["name"]
    assert (bundle / "model.onnx").exists()
    assert main(["sweep", "pick", "curve", "--min-accuracy", "1"]) == 2
    assert "the most accurate run has" in capsys.readouterr().err


def test_a_run_that_fails_is_named_and_stops_no_other(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ("--target-flops", "0.5", "--set", "recipe.batch_size=100000,64", "--output", "failing")
    assert main([*SWEEP[:3], *given]) == 1
    message = capsys.readouterr().err
    assert "1 of 2 runs are complete; batch_size100000: exit code 2, see 'failing/logs/batch_size100000.log'" in message
    assert main(["sweep", "status", "failing"]) == 0
    shown = capsys.readouterr().out
    assert "failed" in shown
    assert "complete" in shown


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--target-flops", "0.7"), "is a sweep with the run '0.3', which is not among these"),
        (("--target-flops", "0.7,0.5,0.3,0.2"), "is a sweep of another plan: its run '0.3' has other settings"),
        (("--target-flops", "0.7,0.7"), "--target-flops gives 0.7 and 0.7, which are the same run"),
        ((*TARGETS, "--executor", "cloud"), "there is no executor 'cloud'"),
        ((*TARGETS, "--set", "seed"), "--set is 'seed', but must be KEY=V1,V2"),
        ((*TARGETS, "--seeds", "1", "--seed", "1"), "--seeds gives values of seed, which another option sets"),
        (("--target-flops", "0.01,0.001,0.5", "--output", "new"), "0.001: target 0.001 .*; 0.01: target 0.01 "),
    ],
)
def test_what_cannot_be_done_is_refused(
    work: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], words: str
) -> None:
    assert main([*SWEEP, *arguments]) == 2
    assert re.search(words, capsys.readouterr().err)


def test_two_sweeps_in_one_directory_are_one_too_many(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with locked(Path("busy")):
        assert main([*SWEEP[:-1], "busy", *TARGETS]) == 5
    assert f"'busy' is in use by process {os.getpid()}" in capsys.readouterr().err


def test_a_run_is_no_sweep(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sweep", "status", "curve/runs/0.3"]) == 2
    assert "is not a sweep of atopipe" in capsys.readouterr().err
    assert main([*SWEEP[:-1], "curve/runs/0.3", *TARGETS]) == 2
    assert "is not empty and not a sweep of atopipe" in capsys.readouterr().err
