"""A sweep of a tiny network that is killed again and again: are all runs complete, and the same as undisturbed?

    python benchmarks/sweep_kills.py [--moments 10] [--jobs 2]

At random moments the sweep or one of its trials gets SIGKILL, SIGTERM or SIGINT in turn, and the same command is given
again until it is through. Eight runs: two seeds, four targets. Linux only.
"""

import hashlib
import itertools
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import click
import psutil
from record import append, environment

NET = """
from torch import nn

def net(num_classes):
    body = nn.Conv2d(3, 16, 3, stride=2, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 24, 3), nn.ReLU()
    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(384, num_classes))
"""
CONFIG = """
model: tiny_for_kills:net
recipe: {epochs: 4, batch_size: 64, align: 1}
preflight: false
validation: {latency_s: 0.1}
checkpoint_minutes: 0
threads: 1
device: cpu
"""
LONGEST_S = 30.0  # between two kills
KILLS = (("sweep", signal.SIGKILL), ("trial", signal.SIGKILL), ("sweep", signal.SIGTERM), ("sweep", signal.SIGINT))


@click.command()
@click.option("--moments", default=10, show_default=True)
@click.option("--jobs", default=2, show_default=True)
@click.option("--seed", default=0, show_default=True)
def main(moments: int, jobs: int, seed: int) -> None:
    """Run undisturbed, run killed, compare."""
    with TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "tiny_for_kills.py").write_text(NET)
        (folder / "config.yaml").write_text(CONFIG)
        assert start(folder, "whole", jobs).wait() == 0
        killed = list(disturbed(folder, moments, jobs, random.Random(seed)))
        same = digests(folder / "whole") == digests(folder / "killed")
        left = [process.pid for process in psutil.process_iter() if belongs(process, folder)]
        print(f"{len(killed)} kills ({', '.join(killed)}); digests equal: {same}; processes left: {len(left)}")
        append("sweep_kills", {"kills": killed, "same": same, "left": len(left), "environment": environment()})


def start(folder: Path, name: str, jobs: int) -> subprocess.Popen[bytes]:
    options = ("--config", "config.yaml", "--target-flops", "0.8,0.6,0.5,0.3", "--seeds", "0,1", "--jobs", str(jobs))
    with (folder / f"{name}.log").open("ab") as log:
        command = [sys.executable, "-m", "atopipe.pipeline", "sweep", *options, "--output", name]
        return subprocess.Popen(command, cwd=folder, stdout=log, stderr=log)


def disturbed(folder: Path, moments: int, jobs: int, draw: random.Random) -> Iterator[str]:
    """Until it is through; what was done to it."""
    kills = itertools.chain((KILLS[number % len(KILLS)] for number in range(moments)), itertools.repeat(None))
    process = start(folder, "killed", jobs)
    for kill in kills:
        if kill is None:
            assert process.wait() == 0, (folder / "killed.log").read_text()[-2000:]
            return
        try:
            process.wait(draw.uniform(3, LONGEST_S))
            process = start(folder, "killed", jobs)  # through before its time: killed while it finds that out
            time.sleep(draw.uniform(0, 3))
        except subprocess.TimeoutExpired:
            pass
        whom, number = kill
        trials = [child for child in psutil.Process(process.pid).children() if child.is_running()]
        if whom == "trial" and trials:
            draw.choice(trials).send_signal(number)
        else:
            process.send_signal(number)
            process.wait()
            process = start(folder, "killed", jobs)
        yield f"{number.name} of the {whom}"


def digests(root: Path) -> dict[str, str]:
    files = sorted(root.glob("runs/*/stages/export/model.onnx"))
    assert len(files) == 8
    return {path.parts[-4]: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def belongs(process: psutil.Process, folder: Path) -> bool:
    try:
        return process.cwd() == str(folder) and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


if __name__ == "__main__":
    main()
