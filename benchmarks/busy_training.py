"""How long a training step takes while other programs use the processors, with spinning threads and without.

    python benchmarks/busy_training.py [--rounds 2] [--seconds 12] [--busy 0,2,4] [--group FOLDER]

resnet50 on random images of 64x64 pixels, batch 16, float32, in a process of its own for each figure. `as it was`:
OpenMP's defaults, whose threads spin at barriers, a thread for each of two processors; `as it is`: what
`system.openmp` sets before torch is loaded, and as many threads as `available_processors` counts. Both are measured in
turn in every round, beside as many other busy processes as said. The figure is the median step. `others` is the share
of all processors that other programs used meanwhile: compare within a round, and leave out rounds that were disturbed.
The last line is the median ratio of both for each number of processes.

`--group`: a control group with a quota, which the measured processes join; for one processor's worth of time:

    mkdir /sys/fs/cgroup/cpu/one && echo 100000 > /sys/fs/cgroup/cpu/one/cpu.cfs_quota_us
"""

import json
import os
import statistics
import subprocess
import sys
import time
from typing import Any

import click
from record import append, environment

SIDE, BATCH, THREADS = 64, 16, 2
KINDS = ("as it was", "as it is")
STEPS = """
import json, os, sys, time
from atopipe.pipeline.system.machine import available_processors
from atopipe.pipeline.system.openmp import wait_without_spinning
side, batch, threads, seconds = map(float, sys.argv[2:])
if sys.argv[1] == "as it is":
    wait_without_spinning()
    threads = available_processors()
import psutil, torch, torchvision
def used():
    times = psutil.cpu_times()
    return sum(times) - times.idle - times.iowait - times.guest - times.guest_nice
torch.set_num_threads(int(threads))
torch.manual_seed(0)
model = torchvision.models.resnet50(num_classes=10)
optimiser = torch.optim.SGD(model.parameters(), 0.01)
images, labels = torch.randn(int(batch), 3, int(side), int(side)), torch.arange(int(batch)) % 10
taken, cpu, begun, before_all = [], time.process_time(), time.monotonic(), used()
while len(taken) < 2 or time.monotonic() < begun + seconds:
    before = time.perf_counter()
    optimiser.zero_grad()
    torch.nn.functional.cross_entropy(model(images), labels).backward()
    optimiser.step()
    taken.append(time.perf_counter() - before)
wall, own = time.monotonic() - begun, time.process_time() - cpu
others = (used() - before_all - own) / wall / os.cpu_count()
print(json.dumps({"steps_s": taken[1:], "cpu_s": own / len(taken), "threads": int(threads), "others": others}))
"""
JOIN = 'echo $$ > "$0/cgroup.procs" && exec "$@"'
CHOSEN = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "OMP_NUM_THREADS")


def steps(kind: str, seconds: float, group: str | None) -> dict[str, float]:
    """Median seconds of a step, and processor seconds for each, in a fresh process."""
    clean = {name: value for name, value in os.environ.items() if name not in CHOSEN}
    command = [sys.executable, "-c", STEPS, kind, *(str(value) for value in (SIDE, BATCH, THREADS, seconds))]
    joined = ["/bin/sh", "-c", JOIN, group, *command] if group else command
    done = subprocess.run(joined, env=clean, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    taken = found.pop("steps_s")
    return {"step_s": statistics.median(taken), "steps": len(taken), **found}


def measure(busy: int, rounds: int, seconds: float, group: str | None) -> float:
    """Step as it was / as it is beside that many busy processes: the median of the rounds' ratios."""
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(busy)]
    time.sleep(1)
    ratios = []
    try:
        for number in range(rounds):
            row: dict[str, Any] = {kind: steps(kind, seconds, group) for kind in KINDS[:: 1 if number % 2 == 0 else -1]}
            ratios.append(row["as it was"]["step_s"] / row["as it is"]["step_s"])
            row |= {"group": group, "load": os.getloadavg()[0], "ratio": ratios[-1]}
            append("busy_training", {"busy": busy, "round": number, **row, **environment()})
            words = ", ".join(f"{k} {row[k]['step_s']:.3f} s (others {row[k]['others']:.0%})" for k in KINDS)
            print(f"busy {busy} round {number}: {words}", flush=True)
    finally:
        for other in others:
            other.kill()
            other.wait()
    return statistics.median(ratios)


@click.command()
@click.option("--rounds", default=2)
@click.option("--seconds", default=12.0)
@click.option("--busy", default="0,2,4")
@click.option("--group", default=None, help="Folder of a control group that the measured processes join.")
def main(rounds: int, seconds: float, busy: str, group: str | None) -> None:
    ratios = {count: measure(count, rounds, seconds, group) for count in map(int, busy.split(","))}
    print("as it was / as it is: " + ", ".join(f"{ratio:.2f} beside {count}" for count, ratio in ratios.items()))


if __name__ == "__main__":
    main()
