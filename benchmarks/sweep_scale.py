"""A sweep of a thousand runs with a stub in place of training: what the sweep itself takes.

    python benchmarks/sweep_scale.py [--runs 1000] [--jobs 2]

Plan, directories, the local pool, `sweep status` and the report; the stub is `true`, which does nothing.
"""

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click
from record import append, environment

from atopipe.pipeline.config.load import load_config
from atopipe.pipeline.sweep.curve import curve_of
from atopipe.pipeline.sweep.executors.pool import LocalPool, slots_of
from atopipe.pipeline.sweep.plan import Axis, plan
from atopipe.pipeline.sweep.progress import progress_of
from atopipe.pipeline.sweep.trials import SweepDirectory
from atopipe.pipeline.system.machine import peak_memory_bytes

TARGETS = ("0.7", "0.5", "0.3", "0.2")
METRICS = {
    "accuracy.onnx": 0.9,
    "flops.shrunk": 1e6,
    "flops.dense": 2e6,
    "latency.shrunk_p50_ms": 1.0,
    "latency.dense_p50_ms": 2.0,
}


@click.command()
@click.option("--runs", default=1000, show_default=True)
@click.option("--jobs", default=2, show_default=True)
def main(runs: int, jobs: int) -> None:
    """Time every part, and print a line for each."""
    seeds = tuple(str(seed) for seed in range(runs // len(TARGETS)))
    axes = (Axis("target_flops", TARGETS), Axis("seed", seeds))
    found: dict[str, Any] = {"runs": runs, "jobs": jobs}
    with TemporaryDirectory() as scratch:
        sweep = SweepDirectory(Path(scratch))
        with timed("plan", found):
            members = plan(
                axes, lambda chosen: load_config(None, {"model.name": "resnet20", **chosen}), independent=False
            )
        with timed("directories", found):
            sweep.make_runs(members)
        with timed("what is left to do", found):
            trials = [replace(trial, command=("true",)) for trial in sweep.trials(members)]
        with timed("pool", found):
            LocalPool(slots_of(jobs, sorted(os.sched_getaffinity(0)), [])).run(trials, lambda told: None)
        for member in members:
            pretend(sweep.run(member.name))
        with timed("status", found):
            assert len(list(progress_of(sweep, [member.name for member in members]))) == runs
        with timed("curve", found):
            assert len(curve_of(sweep, {member.name: member.chosen for member in members}).points) == runs
    found["trials"], found["peak_bytes"] = len(trials), peak_memory_bytes()
    print(f"{len(trials)} trials, {1000 * found['pool'] / len(trials):.0f} ms each; {found['peak_bytes'] / 1e6:.0f} MB")
    append("sweep_scale", {**found, "environment": environment()})


@contextmanager
def timed(what: str, found: dict[str, Any]) -> Iterator[None]:
    start = time.perf_counter()
    yield
    found[what] = time.perf_counter() - start
    print(f"{what:<20} {found[what]:.2f} s", flush=True)


def pretend(root: Path) -> None:
    """Writes what the report of a run reads, and the events of 200 epochs."""
    events = [
        {"time": 0.0, "event": "epoch", "epoch": n, "epochs": 200, "phase": "small", "val_accuracy": 0.9}
        for n in range(200)
    ]
    (root / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    (root / "metrics.json").write_text(json.dumps(METRICS))
    for name, content in (
        ("report/result.json", {"stage": "report", "seconds": 1.0}),
        ("validate/flips.json", {"shrunk_to_onnx": {"count": 1000}}),
        ("validate/gates.json", [{"outcome": "pass"}]),
    ):
        file = root / "stages" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(content))


if __name__ == "__main__":
    main()
