"""What happens around a run: a full disk, a read-only folder, a data worker that dies, a clock that jumps."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from harness import furnish, working_in
from PIL import Image

from atopipe.pipeline.cli.main import main
from atopipe.pipeline.data.dataset import Split
from atopipe.pipeline.data.photographs.encoded import EncodedFiles
from atopipe.pipeline.data.photographs.store import Photographs
from atopipe.pipeline.data.preprocessing import Preprocessing

ATOPIPE = f"{sys.executable} -m atopipe.pipeline"
FULL_THEN_FREED = f"""
set -u
mount -t tmpfs -o size=96k tmpfs disk
{ATOPIPE} run --config config.yaml --output disk/run --quiet; echo "code $?"
mount -o remount,size=64m disk
{ATOPIPE} run --config config.yaml --output disk/run --quiet; echo "code $?"
mount -o remount,ro disk
{ATOPIPE} report disk/run --force --quiet; echo "code $?"
{ATOPIPE} verify disk/run; echo "code $?"
"""


def may_mount() -> bool:
    """Whether this process may mount a private disk."""
    if shutil.which("unshare") is None:
        return False
    tried = subprocess.run(["unshare", "--mount", "mount", "-t", "tmpfs", "tmpfs", "/mnt"], capture_output=True)  # noqa: S607
    return tried.returncode == 0


@pytest.mark.slow
@pytest.mark.skipif(not may_mount(), reason="mounting a small disk takes rights that this process has not")
def test_a_full_and_a_read_only_disk_are_one_sentence_and_the_run_goes_on_when_there_is_room(tmp_path: Path) -> None:
    (furnish(tmp_path) / "disk").mkdir()
    command = ["unshare", "--mount", "sh", "-c", FULL_THEN_FREED]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=280, check=False)
    codes = [int(line.split()[1]) for line in done.stdout.splitlines() if line.startswith("code")]
    assert codes[0] == codes[2] == 5
    assert codes[1] in (0, 3, 4)
    assert codes[3] == 0
    full, *later = done.stderr.splitlines()
    assert full.startswith("atopipe: no space left in 'disk/run' (0.")
    assert full.endswith(" MB free): free some, or choose another --output")
    assert later[-1].endswith("(Read-only file system): change its permissions, or choose another --output")
    assert len(later) <= 2  # a gate of so short a measurement may say something too


def images(folder: Path, count: int) -> tuple[Path, ...]:
    paths = tuple(folder / f"{number}.png" for number in range(count))
    for path in paths:
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (300, 300, 3)).astype(np.uint8)).save(path)
    return paths


def test_reading_from_disk_starts_no_process_and_needs_no_shared_memory(tmp_path: Path) -> None:
    """Nothing that the memory killer or a signal to the group could end alone, nor a /dev/shm that could be full."""
    Image.fromarray(np.zeros((300, 300, 3), np.uint8)).save(tmp_path / "a.png")
    settings = Preprocessing((256, 256), (256, 256), (0.5,) * 3, (0.5,) * 3)
    store = Photographs(EncodedFiles([tmp_path / "a.png"] * 64), (256, 256), (256, 256))
    before, shared = set(psutil.Process().children(recursive=True)), set(Path("/dev/shm").glob("*"))  # noqa: S108
    batches = iter(Split(store, torch.zeros(64, dtype=torch.long), settings).batches(2, device="cpu"))
    next(batches)
    assert set(psutil.Process().children(recursive=True)) == before
    assert {path for path in set(Path("/dev/shm").glob("*")) - shared if path.owner() and "torch" in path.name} == set()  # noqa: S108
    assert len(list(batches)) == 31


def test_a_clock_that_jumps_back_changes_no_result(finished_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, jump = time.time, iter(range(10**6))
    monkeypatch.setattr(time, "time", lambda: real() - 3600 * next(jump))
    with working_in(finished_run):
        assert main(["run", "--config", "config.yaml", "--output", "again", "--until", "shrink", "--quiet"]) == 0
    for name in ("train/masks.safetensors", "train/weights.safetensors", "shrink/weights.safetensors"):
        first, second = (finished_run / run / "stages" / name for run in ("out", "again"))
        assert first.read_bytes() == second.read_bytes()


def test_ctrl_c_while_a_stage_runs_leaves_nothing_half_done(finished_run: Path) -> None:
    def press() -> None:
        while '"stage started", "stage": "export"' not in (finished_run / "out/events.jsonl").read_text()[before:]:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    before = len((finished_run / "out/events.jsonl").read_text())
    finger = threading.Thread(target=press, daemon=True)
    finger.start()
    with working_in(finished_run):
        assert main(["export", "out", "--force", "--quiet"]) == 130
        assert main(["verify", "out"]) == 0
