"""Checkpoints on disk, and real processes that are stopped and started again."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from atopipe.ato.snapshot import Snapshot
from atopipe.pipeline.rundir.checkpoints import Checkpoints
from atopipe.pipeline.system.signals import StopRequest

CONFIG = """
model: {name: resnet20, args: {}}
target_flops: 0.5
data: {source: digits, input_size: 8}
recipe: {epochs: 6, batch_size: 128, precision: float32}
validation: {latency_s: 0.2}
preflight: false
checkpoint_minutes: 0
threads: 1
device: cpu
"""


def snapshot(step: int) -> Snapshot:
    tensors = {"trainer.weights": torch.full((4,), float(step)), "epoch.order": torch.arange(3, dtype=torch.uint8)}
    return Snapshot(tensors, {"trainer": {"steps": {"finished": step}}, "epoch": {"rate": 0.1}})


class Notes:
    """What was said."""

    def __init__(self) -> None:
        self.said: list[str] = []


@pytest.fixture
def notes() -> Notes:
    return Notes()


def checkpoints(folder: Path, notes: Notes, key: str = "k", minutes: float = 0.0) -> Checkpoints:
    return Checkpoints(folder, key, minutes, StopRequest(), notes.said.append)


def test_a_snapshot_comes_back_as_it_was(tmp_path: Path, notes: Notes) -> None:
    kept = checkpoints(tmp_path, notes)
    kept.after_step("dense", lambda: snapshot(7))
    found = checkpoints(tmp_path, notes).latest()
    assert found is not None
    assert found.values == snapshot(7).values
    assert all(torch.equal(found.tensors[name], tensor) for name, tensor in snapshot(7).tensors.items())
    assert notes.said == [f"resuming from step 7 of '{tmp_path}'"]


def test_the_last_two_are_kept_and_a_damaged_one_is_passed_over(tmp_path: Path, notes: Notes) -> None:
    kept = checkpoints(tmp_path, notes)
    for step in (1, 2, 3):
        kept.cost = 0.0
        kept.after_step("dense", lambda step=step: snapshot(step))  # type: ignore[misc]
    assert sorted(file.name for file in tmp_path.glob("*.safetensors")) == [
        "000000000002.safetensors",
        "000000000003.safetensors",
    ]
    newest = tmp_path / "000000000003.safetensors"
    newest.write_bytes(newest.read_bytes()[:-1] + b"?")
    found = checkpoints(tmp_path, notes).latest()
    assert found is not None
    assert found.values["trainer"]["steps"]["finished"] == 2
    assert notes.said[0] == f"checkpoint '{newest.with_suffix('')}' is damaged: using the previous one"


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"key": "k"}', '{"key": "k", "sha256": 3}'])
def test_a_damaged_description_is_no_traceback(tmp_path: Path, notes: Notes, damage: str) -> None:
    checkpoints(tmp_path, notes).after_step("dense", lambda: snapshot(1))
    (tmp_path / "000000000001.json").write_text(damage)
    assert checkpoints(tmp_path, notes).latest() is None
    assert "is damaged" in notes.said[0]


def test_damaged_checkpoints_of_later_steps_do_not_displace_whole_ones(tmp_path: Path, notes: Notes) -> None:
    later = checkpoints(tmp_path, notes)
    for step in (8, 9):
        later.cost = 0.0
        later.after_step("dense", lambda step=step: snapshot(step))  # type: ignore[misc]
    for file in tmp_path.glob("*.safetensors"):
        file.write_bytes(b"damaged")
    checkpoints(tmp_path, notes).after_step("dense", lambda: snapshot(3))
    found = checkpoints(tmp_path, notes).latest()
    assert found is not None
    assert found.values["trainer"]["steps"]["finished"] == 3


def test_what_belongs_to_another_run_is_not_used(tmp_path: Path, notes: Notes) -> None:
    checkpoints(tmp_path, notes, "one").after_step("dense", lambda: snapshot(1))
    assert checkpoints(tmp_path, notes, "another").latest() is None
    assert notes.said == [f"starting from scratch: '{tmp_path}' belongs to other settings, code, data or libraries"]


def test_checkpoints_cost_at_most_two_percent_of_the_time(tmp_path: Path, notes: Notes) -> None:
    kept = checkpoints(tmp_path, notes)
    kept.cost, kept.saved_at = 1.0, time.monotonic() - 49.0
    kept.after_step("dense", lambda: snapshot(1))
    assert not list(tmp_path.iterdir())
    kept.saved_at = time.monotonic() - 51.0
    kept.after_step("dense", lambda: snapshot(2))
    assert [file.stem for file in tmp_path.glob("*.json")] == ["000000000002"]


def test_a_request_to_stop_keeps_one_more_and_interrupts(tmp_path: Path, notes: Notes) -> None:
    kept = checkpoints(tmp_path, notes, minutes=1000)
    kept.after_step("dense", lambda: snapshot(1))
    with kept.stop.listening():
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            kept.after_step("dense", lambda: snapshot(2))
    assert [file.stem for file in tmp_path.glob("*.json")] == ["000000000002"]


def start(folder: Path, output: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "atopipe.pipeline", "train", "--config", "config.yaml", "--output", output]
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(process: "subprocess.Popen[str]") -> tuple[int, str]:
    said, _ = process.communicate(timeout=300)
    return process.returncode, said


@pytest.mark.slow
def test_a_real_run_that_is_stopped_and_killed_ends_in_the_same_bytes(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(CONFIG)
    assert finish(start(tmp_path, "whole"))[0] == 0
    for number, code in ((signal.SIGTERM, 130), (signal.SIGKILL, -signal.SIGKILL), (signal.SIGINT, 130)):
        process = start(tmp_path, "stopped")
        assert process.stdout is not None
        next(line for line in process.stdout if line.startswith("epoch"))
        process.send_signal(number)
        assert finish(process)[0] == code
        assert not (tmp_path / "stopped/stages/train").exists()
    code, said = finish(start(tmp_path, "stopped"))
    assert code == 0, said
    assert "resuming from step" in said
    results = [json.loads((tmp_path / name / "stages/train/result.json").read_text()) for name in ("whole", "stopped")]
    for name in ("weights.safetensors", "masks.safetensors"):
        assert results[0]["artifacts"][name] == results[1]["artifacts"][name]
    assert not (tmp_path / "stopped/checkpoints").exists()
