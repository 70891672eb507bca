"""Four targets from one search against four separate runs: accuracy and processor time, over seeds.

    python benchmarks/sweep.py run --data CIFAR [--seeds 0,1,2] [--work DIR]
    python benchmarks/sweep.py table

CIFAR is a folder with train/<class>/ and val/<class>/ images, 10,000 for training in the published table. Shared and
separate trainings are interleaved. Each is a run directory in DIR that resumes where it stopped, and a line of
results/sweep.jsonl when it is through; time is that of the processor, which other programs disturb less.
"""

import itertools
import json
import os
import resource
import statistics
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
from record import append, environment, rows

NAME = "sweep"
Row = dict[str, Any]
SEARCH, SHARED, SEPARATE = "search", "shared", "separate"


@dataclass(frozen=True)
class Training:
    """One process: the search of all targets, what follows it for one target, or a separate run."""

    kind: str
    target: str
    seed: int
    model: str
    data: str
    settings: str


@click.group()
def cli() -> None:
    """Several budgets from one search."""


@cli.command()
@click.option("--data", required=True)
@click.option("--model", default="resnet20", show_default=True)
@click.option("--targets", default="0.2,0.7,0.5,0.3", show_default=True, help="The tightest one first.")
@click.option("--seeds", default="0,1,2", show_default=True)
@click.option("--settings", default="{epochs: 12}", show_default=True, help="The recipe.")
@click.option("--work", default="runs/sweep-benchmark", show_default=True)
def run(data: str, model: str, targets: str, seeds: str, settings: str, work: str) -> None:
    """Train what is not there yet."""
    for seed in map(int, seeds.split(",")):
        for training in trainings(targets.split(","), seed, model, data, settings):
            if asdict(training) not in [{key: row[key] for key in asdict(training)} for row in rows(NAME)]:
                train(training, targets.split(",")[0], Path(work).absolute() / f"seed{seed}")


def trainings(targets: list[str], seed: int, model: str, data: str, settings: str) -> Iterator[Training]:
    """The search, then shared and separate in turn."""
    kinds = [(SEARCH, targets[0]), *itertools.product((SHARED, SEPARATE), targets)]
    for kind, target in sorted(kinds, key=lambda case: (case[0] != SEARCH, targets.index(case[1]))):
        yield Training(kind, target, seed, model, data, settings)


def train(training: Training, tightest: str, work: Path) -> None:
    """Runs the process, as often as it takes, and keeps the seconds of all attempts beside the run."""
    work.mkdir(parents=True, exist_ok=True)
    shares = training.kind != SEPARATE
    root = work / f"{'shared' if shares else 'separate'}-{training.target}"
    config = root.with_suffix(".yaml")
    config.write_text(
        f"model: {training.model}\ndata: {{source: 'imagefolder:{Path(training.data).absolute()}'}}\n"
        f"recipe: {training.settings}\nseed: {training.seed}\ntarget_flops: {training.target}\n"
        f"preflight: false\nthreads: 1\ndevice: cpu\ncheckpoint_minutes: 2\n"
        + (f"shared_search: {{target_flops: {tightest}}}\n" if shares else "")
    )
    options = [
        "--config",
        str(config),
        "--output",
        str(root),
        "--until",
        SEARCH if training.kind == SEARCH else "shrink",
    ]
    reuse = ["--reuse", str(work / f"shared-{tightest}")] if shares and training.target != tightest else []
    before = processor_seconds()
    command = [sys.executable, "-m", "atopipe.pipeline", "run", *options, *reuse]
    try:
        subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    finally:
        spent = root.with_suffix(f".{training.kind}.seconds")
        seconds = processor_seconds() - before + (float(spent.read_text()) if spent.exists() else 0.0)
        spent.write_text(str(seconds))
    found = {} if training.kind == SEARCH else accuracy(root)
    append(NAME, {**asdict(training), **found, "seconds": seconds, "environment": environment()})


def processor_seconds() -> float:
    """Of all processes that this one has waited for."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def accuracy(root: Path) -> dict[str, float]:
    last = json.loads((root / "stages/train/history.json").read_text())[-1]
    return {"accuracy": last["val_accuracy"], "kept": last["kept"]["flops"]}


@cli.command()
def table() -> None:
    """Print the results as Markdown."""
    found = list(rows(NAME))
    print("| target | seeds | separate, % | shared, % | difference | time, shared / separate |\n|-|-:|-:|-:|-:|-:|")
    for target in dict.fromkeys(row["target"] for row in found if row["kind"] == SHARED):
        pairs = [(by[SEPARATE], by[SHARED]) for by in _by_seed(found, target) if {SEPARATE, SHARED} <= by.keys()]
        if pairs:
            alone, shared = ([100 * pair[side]["accuracy"] for pair in pairs] for side in (0, 1))
            ahead = statistics.mean(shared) - statistics.mean(alone)
            ratio = sum(pair[1]["seconds"] for pair in pairs) / sum(pair[0]["seconds"] for pair in pairs)
            means = f"{statistics.mean(alone):.2f} | {statistics.mean(shared):.2f} | {ahead:+.2f}"
            print(f"| {target} | {len(pairs)} | {means} | {ratio:.2f} |")
    for seed in dict.fromkeys(row["seed"] for row in found):
        mine = [row for row in found if row["seed"] == seed]
        alone = sum(row["seconds"] for row in mine if row["kind"] == SEPARATE)
        shared = sum(row["seconds"] for row in mine if row["kind"] != SEPARATE)
        print(f"\nseed {seed}: search and branches {shared:.0f} s, separate runs {alone:.0f} s of processor time")


def _by_seed(found: list[Row], target: str) -> list[dict[str, Row]]:
    seeds = dict.fromkeys(row["seed"] for row in found)
    return [{row["kind"]: row for row in found if row["seed"] == seed and row["target"] == target} for seed in seeds]


if __name__ == "__main__":
    cli()
