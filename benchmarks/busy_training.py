"""How long a training step takes while other programs use the processors, with spinning threads and without.

    python benchmarks/busy_training.py [--rounds 2] [--seconds 12] [--busy 0,2,4]

resnet50 on random images of 64x64 pixels, batch 16, two threads, float32, in a process of its own for each figure.
`as it was`: OpenMP's defaults, whose threads spin at barriers; `as it is`: what `system.openmp` sets before torch is
loaded. Both are measured in turn in every round, beside as many other busy processes as said. The figure is the median
step; on a machine where others work too, compare within a round. The last line is the ratio of both for each number of
processes.
"""

import json
import os
import statistics
import subprocess
import sys
import time

import click
from record import append, environment

SIDE, BATCH, THREADS = 64, 16, 2
STEPS = """
import json, os, sys, time
from atopipe.pipeline.system.openmp import wait_without_spinning
if sys.argv[1] == "as it is":
    wait_without_spinning()
import torch, torchvision
side, batch, threads, seconds = map(float, sys.argv[2:])
torch.set_num_threads(int(threads))
torch.manual_seed(0)
model = torchvision.models.resnet50(num_classes=10)
optimiser = torch.optim.SGD(model.parameters(), 0.01)
images, labels = torch.randn(int(batch), 3, int(side), int(side)), torch.arange(int(batch)) % 10
taken, cpu, end = [], time.process_time(), time.monotonic() + seconds
while len(taken) < 2 or time.monotonic() < end:
    before = time.perf_counter()
    optimiser.zero_grad()
    torch.nn.functional.cross_entropy(model(images), labels).backward()
    optimiser.step()
    taken.append(time.perf_counter() - before)
print(json.dumps({"steps_s": taken[1:], "cpu_s": (time.process_time() - cpu) / len(taken)}))
"""
CHOSEN = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "OMP_NUM_THREADS")


def steps(kind: str, seconds: float) -> dict[str, float]:
    """Median seconds of a step, and processor seconds for each, in a fresh process."""
    clean = {name: value for name, value in os.environ.items() if name not in CHOSEN}
    settings = [kind, *(str(value) for value in (SIDE, BATCH, THREADS, seconds))]
    done = subprocess.run(
        [sys.executable, "-c", STEPS, *settings], env=clean, capture_output=True, text=True, check=True
    )
    found = json.loads(done.stdout)
    return {"step_s": statistics.median(found["steps_s"]), "cpu_s": found["cpu_s"], "steps": len(found["steps_s"])}


def measure(busy: int, rounds: int, seconds: float) -> float:
    """Step as it was / as it is beside that many busy processes: the median of the rounds' ratios."""
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(busy)]
    time.sleep(1)
    ratios = []
    try:
        for number in range(rounds):
            row = {kind: steps(kind, seconds) for kind in ("as it was", "as it is")[:: 1 if number % 2 == 0 else -1]}
            ratios.append(row["as it was"]["step_s"] / row["as it is"]["step_s"])
            load = os.getloadavg()[0]
            append("busy_training", {"busy": busy, "round": number, **row, "load": load, **environment()})
            print(f"busy {busy} round {number}: " + ", ".join(f"{k} {v['step_s']:.3f} s" for k, v in row.items()))
    finally:
        for other in others:
            other.kill()
            other.wait()
    return statistics.median(ratios)


@click.command()
@click.option("--rounds", default=2)
@click.option("--seconds", default=12.0)
@click.option("--busy", default="0,2,4")
def main(rounds: int, seconds: float, busy: str) -> None:
    ratios = {count: measure(count, rounds, seconds) for count in map(int, busy.split(","))}
    print("as it was / as it is: " + ", ".join(f"{ratio:.2f} beside {count}" for count, ratio in ratios.items()))


if __name__ == "__main__":
    main()
