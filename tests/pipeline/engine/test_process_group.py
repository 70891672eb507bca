"""A job of several processes: real ones, started by torchrun, that talk through gloo."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
from safetensors.numpy import load_file

from atopipe.pipeline.cli.main import main
from atopipe.pipeline.engine.process_group import LOST
from atopipe.pipeline.system.errors import UsageError
from atopipe.pipeline.system.job import Job, first_node, tasks_per_node, this_job

CODE = """
import numpy as np
from torch import nn

from atopipe.pipeline.data.sources.arrays import LabelledImages, data_from_arrays
from atopipe.pipeline.data.augment import unchanged

def net(num_classes):
    layers = [nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 16, 3, 2, 1), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(64, num_classes))

def spots(seed):
    numbers = np.random.default_rng(seed)
    labels = numbers.integers(0, 4, 330)
    images = numbers.integers(0, 100, (330, 3, 16, 16)).astype(np.uint8)
    images[np.arange(330), :, 4 * labels, 4 * labels] = 255
    train, val = LabelledImages(images[:266], labels[:266]), LabelledImages(images[266:], labels[266:])
    return data_from_arrays("spots", "spots", tuple("abcd"), train, val, input_size=None, augmentation=unchanged)
"""
# Every process writes down the mask it ended with, which only rank 0 delivers.
NOTING = """
import os, sys
import numpy as np
from atopipe.ato.training.trainer import Trainer
from atopipe.pipeline.cli.main import main

original = Trainer.trained_model

def noting(self):
    model, mask = original(self)
    np.save(f"mask{os.environ['RANK']}.npy", mask.numpy())
    return model, mask

Trainer.trained_model = noting
sys.exit(main(sys.argv[1:]))
"""
CONFIG = """
model: small_for_jobs:net
target_flops: 0.5
data: small_for_jobs:spots
recipe:
  epochs: 5
  batch_size: 32
  align: 1
  precision: float32
  weights: {optimizer: sgd, learning_rate: 0.1}
  controller: {batch_share: 1.0}
baseline: true
preflight: false
device: cpu
threads: 1
"""
LAUNCH = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder, before, path = tmp_path_factory.mktemp("job"), Path.cwd(), sys.path.copy()
    for name, content in {"small_for_jobs.py": CODE, "noting.py": NOTING, "config.yaml": CONFIG}.items():
        (folder / name).write_text(content)
    os.chdir(folder)
    yield folder
    os.chdir(before)
    sys.path[:] = path


@pytest.mark.slow
def test_two_processes_follow_one_with_the_same_batches(work: Path) -> None:
    """To rounding: the same order, the same weights, the same mask in every process."""
    command = ["train", "--config", "config.yaml"]
    done = subprocess.run(
        [*LAUNCH, "noting.py", *command, "--output", "two"], capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("device  cpu (threads: 1, float32, 2 processes)") == 1
    assert main([*command, "--output", "one", "--quiet"]) == 0

    masks = [np.load(work / f"mask{rank}.npy") for rank in (0, 1)]
    np.testing.assert_array_equal(*masks)
    assert 0 < masks[0].mean() < 1
    for stage in ("train", "baseline"):
        one, two = (load_file(work / run / "stages" / stage / "weights.safetensors") for run in ("one", "two"))
        for name, tensor in one.items():
            np.testing.assert_allclose(two[name], tensor, rtol=1e-4, atol=1e-5, err_msg=f"{stage}: {name}")
        one_history, two_history = (
            json.loads((work / run / "stages" / stage / "history.json").read_text()) for run in ("one", "two")
        )
        # 266 images: the last batch of an epoch has 10, which two processes share; accuracy may differ by one image
        for first, second in zip(one_history, two_history, strict=True):
            assert second["loss"] == pytest.approx(first["loss"], rel=1e-4)
            assert second["train_accuracy"] == pytest.approx(first["train_accuracy"], abs=1.5 / 266)
            assert second["kept"] == first["kept"]
            assert second["val_accuracy"] == pytest.approx(first["val_accuracy"], abs=1.5 / 64)  # each counts its half
    for name, mask in load_file(work / "one/stages/train/masks.safetensors").items():
        np.testing.assert_array_equal(load_file(work / "two/stages/train/masks.safetensors")[name], mask)
    again = subprocess.run(
        [*LAUNCH, "-m", "atopipe.pipeline", *command, "--output", "two"],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert (again.returncode, again.stdout.count("unchanged, skipped")) == (0, 2), again.stderr


@pytest.mark.slow
@pytest.mark.parametrize("killed", [0, 1])
def test_a_killed_process_ends_the_job_with_one_sentence(work: Path, killed: int) -> None:
    output = f"cut{killed}"
    command = [*LAUNCH, "-m", "atopipe.pipeline", "train", "--config", "config.yaml", "--epochs", "5000"]
    launcher = subprocess.Popen(
        [*command, "--output", output], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    events, end = work / output / "events.jsonl", time.monotonic() + 120
    while not (events.exists() and '"epoch"' in events.read_text()) and time.monotonic() < end:
        time.sleep(0.1)
    children = psutil.Process(launcher.pid).children(recursive=True)
    victim = next(p for p in children if p.environ().get("RANK") == str(killed))
    victim.send_signal(signal.SIGKILL)
    started = time.monotonic()
    _, error = launcher.communicate(timeout=60)
    assert time.monotonic() - started < 45
    assert launcher.returncode != 0
    assert [line for line in error.splitlines() if line.startswith("atopipe: ")], error
    assert [line for line in error.splitlines() if line.startswith("atopipe: ")] == [f"atopipe: {LOST}"]
    assert not (work / output / "stages/train").exists()
    if killed == 1:  # rank 0 has tidied up
        assert not list((work / output / "stages").iterdir())


@pytest.mark.slow
def test_a_job_that_was_killed_goes_on_in_all_processes(work: Path) -> None:
    options = ["--config", "config.yaml", "--epochs", "20", "--no-baseline", "--checkpoint-minutes", "0"]
    command = [*LAUNCH, "-m", "atopipe.pipeline", "train", *options, "--output", "again"]
    launcher = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    kept, end = work / "again/checkpoints/train", time.monotonic() + 120
    while not list(kept.glob("*.json")) and time.monotonic() < end:
        time.sleep(0.05)
    for child in psutil.Process(launcher.pid).children(recursive=True):
        if "RANK" in child.environ():
            child.send_signal(signal.SIGKILL)
    launcher.communicate(timeout=60)
    assert not (work / "again/stages/train").exists()
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("resuming from step") == 1
    assert len(json.loads((work / "again/stages/train/history.json").read_text())) == 20


@pytest.mark.slow
def test_a_job_that_is_told_to_end_keeps_a_checkpoint(work: Path) -> None:
    """Whichever process is told, all of them stop after the same step, and the next job resumes there."""
    command = [*LAUNCH, "-m", "atopipe.pipeline", "train", "--config", "config.yaml", "--output", "told"]
    launcher = subprocess.Popen(
        [*command, "--epochs", "5000"], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    events, end = work / "told/events.jsonl", time.monotonic() + 120
    while not (events.exists() and '"epoch"' in events.read_text()) and time.monotonic() < end:
        time.sleep(0.1)
    children = psutil.Process(launcher.pid).children(recursive=True)
    next(p for p in children if p.environ().get("RANK") == "1").send_signal(signal.SIGTERM)
    _, error = launcher.communicate(timeout=100)
    said = [line for line in error.splitlines() if line.startswith("atopipe: ")]
    assert said == [
        "atopipe: interrupted in stage train: complete stages in 'told' stay usable, run again to resume"
    ], error
    assert "exitcode  : 130" in error
    steps = [int(path.stem) for path in (work / "told/checkpoints/train").glob("*.json")]
    done = len(events.read_text().split('"epoch",')) - 1
    assert max(steps) >= 9 * done  # nine steps in an epoch: later than the last epoch on record


@pytest.mark.slow
def test_a_command_on_a_finished_run_is_the_first_process_alone(work: Path, finished: Path) -> None:
    shutil.copytree(finished, work / "finished")
    command = [*LAUNCH, "-m", "atopipe.pipeline", "report", "out", "--force", "--quiet"]
    done = subprocess.run(command, cwd=work / "finished", capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr


def test_a_batch_that_cannot_be_shared_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    words = "but must be divisible by the 4 processes of this job, with 2 images or more for each"
    for size in (30, 4):
        with pytest.raises(UsageError, match=f"^--batch-size is {size}, {words}$"):
            Job(0, 4, 0, 4).check_batch(size)
    Job(0, 4, 0, 4).check_batch(32)


def test_without_a_launcher_a_job_is_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "3")
    assert this_job() == Job(0, 1, 0, 1)


def test_srun_tells_who_a_process_is(monkeypatch: pytest.MonkeyPatch) -> None:
    told = {"STEP_NUM_TASKS": "11", "PROCID": "9", "LOCALID": "1", "NODEID": "2", "JOB_ID": "77"}
    told |= {"STEP_TASKS_PER_NODE": "4(x2),3", "STEP_NODELIST": "gpu[003-005]"}
    monkeypatch.setattr(os, "environ", {f"SLURM_{name}": value for name, value in told.items()})
    assert this_job() == Job(9, 11, 1, 3)
    assert (os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]) == ("gpu003", "20077")
    monkeypatch.setattr(os, "environ", {"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0", "SLURM_NTASKS": "8"})
    assert this_job() == Job()


@pytest.mark.parametrize(
    ("nodes", "first"), [("a", "a"), ("a,b", "a"), ("gpu[3-5,9],b", "gpu3"), ("rack1-[07]", "rack1-07")]
)
def test_the_first_of_slurms_nodes_is_the_master(nodes: str, first: str) -> None:
    assert first_node(nodes) == first
    assert tasks_per_node("2,1(x3)") == [2, 1, 1, 1]
