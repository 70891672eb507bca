"""What is a budget in latency worth? The same network, once with it and once with FLOPs that give the same latency.

    atopipe run --until profile --model resnet20 --target-latency 0.6 --data imagefolder:CIFAR --output P/resnet20
    python benchmarks/latency_against_flops.py train --data CIFAR --profiles P       # resumable, a few minutes a case
    python benchmarks/latency_against_flops.py measure --profiles P                  # on a quiet machine
    python benchmarks/latency_against_flops.py table

Both look for a mask in the same way; with FLOPs, the most are allowed when the mask is frozen that keep within the
latency which the fit expects. A case is a line of results/latency_against_flops.jsonl; cases that are there are left
out. `measure` adds what the structures take, timed interleaved with the dense one.
"""

import dataclasses
import json
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from ablations import RECIPE
from record import append, environment, rows
from torch import nn

from atopipe.ato.discovery.find import find_groups
from atopipe.ato.groups import Groups
from atopipe.ato.search.budget import Budget
from atopipe.ato.search.cost import flops, kept_fraction
from atopipe.ato.search.latency import FittedLatency
from atopipe.ato.search.selection import ChooseMask, best_groups, select_widths
from atopipe.ato.training.loop import accuracy
from atopipe.ato.training.trainer import train as train_and_prune
from atopipe.pipeline.data.load import load_data
from atopipe.pipeline.models.build import build_model
from atopipe.pipeline.stages.profile.pack import Architecture
from atopipe.pipeline.stages.profile.table import TABLE, LatencyTable, fitted
from atopipe.validate.latency import time_interleaved

NAME, CLASSES, SIZE = "latency_against_flops", 10, 32
BUDGETS = ("latency", "FLOPs")
TARGETS = {"resnet20": 0.6, "mobilenet_v2": 0.5}
RATES = {"resnet20": 0.2, "mobilenet_v2": 0.05}


def network(name: str, seed: int) -> tuple[nn.Module, Groups, torch.Tensor]:
    """The network, what can be pruned, and an image."""
    torch.manual_seed(seed)
    model, example = build_model(name, CLASSES), torch.zeros(1, 3, SIZE, SIZE)
    return model, find_groups(model, example, torch.Generator().manual_seed(0)), example


def latency_of(profiles: Path, name: str, model: nn.Module, groups: Groups) -> FittedLatency:
    """What `atopipe run --until profile` found of the network."""
    folder = profiles / name / "stages/profile"
    pack = json.loads((folder / "pack/pack.json").read_text(encoding="utf-8"))
    if list(pack["sets"]) != [item.name for item in groups.sets]:
        raise click.UsageError(f"'{folder}' is of another network than {name} for {CLASSES} classes at {SIZE} pixels")
    table = LatencyTable.model_validate_json((folder / TABLE).read_bytes())
    return fitted(pack, table, model, groups)


def within_latency(limit: Budget) -> ChooseMask:
    """The mask of the most FLOPs, in steps of a hundredth, that keeps within the latency."""

    def choose(scores: Any, groups: Any, budgets: Any, align: Any) -> Any:
        (by_flops,) = budgets
        for percent in range(100, 0, -1):
            widths = select_widths(scores, groups, [Budget.of_dense(by_flops.cost, percent / 100)], align)
            if limit.holds(widths):
                return best_groups(scores, groups, widths)
        raise RuntimeError("no FLOPs are few enough for the latency")

    return choose


def one(name: str, kind: str, seed: int, data: Any, profiles: Path, epochs: int) -> dict[str, Any]:
    """Train a case: accuracy on the whole test set, what is kept, and the widths."""
    model, groups, example = network(name, seed)
    found = latency_of(profiles, name, model, groups)
    limit, by_flops = Budget.of_dense(found.cost, TARGETS[name]), flops(model, groups, example)
    how: dict[str, Any] = (
        {"budgets": [limit], "width_steps": found.steps}
        if kind == "latency"
        else {"budgets": [Budget.of_dense(by_flops, TARGETS[name])], "choose": within_latency(limit)}
    )
    weights = dataclasses.replace(RECIPE.weights, learning_rate=RATES[name])
    ordered = torch.Generator().manual_seed(seed)
    trained = train_and_prune(
        model,
        groups,
        how.pop("budgets"),
        train_batches=data.train.batches(RECIPE.batch_size, device="cpu", generator=ordered),
        val_batches=data.val.take(torch.arange(500)).batches(500, device="cpu"),
        recipe=dataclasses.replace(RECIPE, align="auto", epochs=epochs, weights=weights),
        generator=torch.Generator().manual_seed(seed + 1000),
        report=lambda happened: None,
        **how,
    )
    widths = groups.widths(trained.mask.cpu()).double()
    return {
        "accuracy": accuracy(trained.model, data.val.batches(500, device="cpu")),
        "flops_ratio": kept_fraction(by_flops, widths),
        "predicted_ratio": kept_fraction(found.cost, widths),
        "widths": {item.name: int(width) for item, width in zip(groups.sets, widths, strict=True)},
    }


@click.group()
def cli() -> None:
    """Budgets in latency against budgets in FLOPs."""


@cli.command()
@click.option("--data", required=True, help="Folder with train/<class>/ and test/<class>/ images.")
@click.option("--profiles", type=click.Path(path_type=Path), required=True)
@click.option("--models", default=",".join(TARGETS), show_default=True)
@click.option("--seeds", default="0,1,2", show_default=True)
@click.option("--images", default=5000, show_default=True)
@click.option("--epochs", default=12, show_default=True)
def train(data: str, profiles: Path, models: str, seeds: str, images: int, epochs: int) -> None:
    """Train every case whose result is not there."""
    torch.set_num_threads(1)
    chosen = load_data(f"imagefolder:{data}", seed=0).subset(images, torch.Generator().manual_seed(0))
    common = {"images": images, "epochs": epochs}
    done = {(r["model"], r["budget"], r["seed"], r["images"], r["epochs"]) for r in rows(NAME) if "accuracy" in r}
    for seed in map(int, seeds.split(",")):
        for name in models.split(","):
            for kind in BUDGETS:
                if (name, kind, seed, images, epochs) not in done:
                    row = {"model": name, "budget": kind, "seed": seed, **common}
                    append(
                        NAME, {**row, **one(name, kind, seed, chosen, profiles, epochs), "environment": environment()}
                    )


@cli.command()
@click.option("--profiles", type=click.Path(path_type=Path), required=True)
@click.option("--seconds", default=10.0, show_default=True)
def measure(profiles: Path, seconds: float) -> None:
    """Time the structures that were trained, each interleaved with the dense network."""
    done = {tuple(r["of"]) for r in rows(NAME) if "measured_ratio" in r}
    images = np.random.default_rng(0).standard_normal((1, 3, SIZE, SIZE)).astype(np.float32)
    for row in [r for r in rows(NAME) if "accuracy" in r]:
        of = (row["model"], row["budget"], row["seed"], row["images"], row["epochs"])
        if of in done:
            continue
        model, groups, _ = network(row["model"], 0)
        dense = profiles / row["model"] / "stages/profile/pack/dense.onnx"
        with tempfile.TemporaryDirectory() as folder:
            small = Path(folder) / "small.onnx"
            widths = torch.tensor([float(width) for width in row["widths"].values()])
            small.write_bytes(Architecture(model, groups, dense).without_weights(widths))
            found = time_interleaved([dense, small], images, budget_s=seconds).compare(0, 1)
        if found.ratio is not None:
            interval = [found.ratio.low, found.ratio.high]
            append(NAME, {"of": of, "measured_ratio": found.ratio.estimate, "interval": interval, "kept": found.kept})


@cli.command()
def table() -> None:
    """Mean and standard deviation over the seeds."""
    trained = [row for row in rows(NAME) if "accuracy" in row]
    measured = {(r["of"][0], r["of"][1], r["of"][2]): r["measured_ratio"] for r in rows(NAME) if "of" in r}
    click.echo("| model | budget in | seeds | top-1, % | deviation | FLOPs kept | latency predicted | measured |")
    click.echo("|-|-|-:|-:|-:|-:|-:|-:|")
    for name, kind in dict.fromkeys((row["model"], row["budget"]) for row in trained):
        own = [row for row in trained if (row["model"], row["budget"]) == (name, kind)]
        mean: Callable[[str], float] = lambda key, own=own: statistics.mean(row[key] for row in own)  # noqa: E731
        tops = [100 * row["accuracy"] for row in own]
        timed = [measured[key] for row in own if (key := (name, kind, row["seed"])) in measured]
        spread = f"{statistics.stdev(tops):.2f}" if len(tops) > 1 else ""
        click.echo(
            f"| {name} | {kind} | {len(own)} | {statistics.mean(tops):.2f} | {spread} | {mean('flops_ratio'):.3f} | "
            f"{mean('predicted_ratio'):.3f} | {f'{statistics.mean(timed):.3f}' if timed else ''} |"
        )


if __name__ == "__main__":
    cli()
