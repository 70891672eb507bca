"""What train-and-prune takes in memory beside plain dense training: the peak of each phase, each run in a process of
its own.

    python benchmarks/training_memory.py [--model resnet50] [--target 0.3]

On a CPU a peak is the largest resident size of the process during the phase, what torch itself takes included; on CUDA
it is what its allocator handed out. The last line is `peak ratio 0.xx`.
"""

import ctypes
import multiprocessing
import threading
import time
from collections import defaultdict

import click
import psutil
import torch
from record import append, environment
from torch import Tensor
from training_cost import Steps, prepare

from atopipe.pipeline.config.load import load_config

SAMPLE_S = 0.005


class PeakOfProcess:
    """The largest resident size since the last `restart`, sampled by a thread."""

    def __init__(self) -> None:
        self.process, self.peak = psutil.Process(), 0
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while True:
            self.peak = max(self.peak, self.process.memory_info().rss)
            time.sleep(SAMPLE_S)

    def restart(self) -> None:
        """Forget what was before; memory that is free is given back to the system first."""
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        self.peak = self.process.memory_info().rss


class PeakOfDevice:
    """The most that torch's CUDA allocator has handed out since the last `restart`."""

    @property
    def peak(self) -> int:
        """Bytes."""
        return torch.cuda.max_memory_allocated()

    def restart(self) -> None:
        """Forget what was before."""
        torch.cuda.reset_peak_memory_stats()


def peaks(trainer: Steps, images: Tensor, labels: Tensor, device: torch.device) -> dict[str, int]:
    """Bytes per phase; the first step of a phase, in which buffers come and go, is left out."""
    watch = PeakOfDevice() if device.type == "cuda" else PeakOfProcess()
    found: dict[str, int] = defaultdict(int)
    seen = None
    while trainer.finished_steps < trainer.total_steps:
        phase = str(trainer.phase)
        trainer.step(images, labels)
        if phase == seen:
            found[phase] = max(found[phase], watch.peak)
        seen = phase
        watch.restart()
    return dict(found)


def measure(pruned: bool, name: str, size: int, batch: int, target: float, device: str, threads: int) -> dict[str, int]:
    """Peaks of one run, in this process."""
    torch.set_num_threads(threads)
    recipe = load_config(None, {"model.name": name, "target_flops": target, "recipe.batch_size": batch}).recipe
    bench = prepare(name, size, recipe, target, steps=4, device=torch.device(device))
    trainer, images, labels = bench.pruned if pruned else bench.dense, bench.images, bench.labels
    del bench  # and with it the other network
    return peaks(trainer, images, labels, torch.device(device))


@click.command()
@click.option("--model", default="resnet50", show_default=True)
@click.option("--size", default=32, show_default=True, help="Pixels of the square input.")
@click.option("--batch", default=64, show_default=True)
@click.option("--target", default=0.3, show_default=True)
@click.option("--device", default="cuda" if torch.cuda.is_available() else "cpu", show_default=True)
@click.option("--threads", default=2, show_default=True)
def main(model: str, size: int, batch: int, target: float, device: str, threads: int) -> None:
    """Measure both runs, and print the peak of each phase."""
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        jobs = [(pruned, model, size, batch, target, device, threads) for pruned in (False, True)]
        dense, pruned = pool.starmap(measure, jobs, chunksize=1)
    for title, found in (("dense", dense), ("train and prune", pruned)):
        print(f"{title:<16}" + ", ".join(f"{phase} {bytes_ / 2**20:.0f} MiB" for phase, bytes_ in found.items()))
    ratio = max(pruned.values()) / max(dense.values())
    row = {**click.get_current_context().params, "dense": dense, "pruned": pruned, "ratio": ratio}
    append("training_memory", {**row, "environment": environment()})
    print(f"peak ratio {ratio:.2f}")


if __name__ == "__main__":
    main()
