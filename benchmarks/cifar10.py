"""The paper's CIFAR-10 rows: our dense and our pruned runs by one recipe, mean and deviation over seeds.

    python benchmarks/cifar10.py run --data CIFAR [--models resnet56,cifar_resnet18,cifar_mobilenet_v2] [--seeds 0,1,2]
    python benchmarks/cifar10.py table

CIFAR is a folder with train/<class>/ and test/<class>/ images, or cifar10:DIR with the official archive. Meant for a
GPU: 200 epochs of ResNet-56 are hours on a CPU. Every run is a line of results/cifar10.jsonl; what is there is not run
again, so an interrupted benchmark resumes.
"""

import time
from dataclasses import asdict, dataclass

import click
import torch
from cases import ATO, DENSE, Case, done, markdown, train_case
from record import append, environment, rows

from atopipe.ato.search.searches import SEARCHES
from atopipe.pipeline.config.load import load_config
from atopipe.pipeline.data.load import load_data

NAME = "cifar10"


@dataclass(frozen=True)
class Row:
    """A row of the paper (ATO, table 1): FLOPs removed, and its change of accuracy in points."""

    removed: float
    dense: float
    change: float


PAPER = {
    "resnet56": Row(0.55, 93.50, 0.24),
    "cifar_resnet18": Row(0.798, 94.41, 0.10),
    "cifar_mobilenet_v2": Row(0.458, 94.45, 0.33),
}


@click.group()
def cli() -> None:
    """The paper's CIFAR-10 rows against our dense runs."""


@cli.command()
@click.option("--data", required=True, help="Folder of images, or cifar10:DIR.")
@click.option("--models", default=",".join(PAPER), show_default=True)
@click.option("--seeds", default="0,1,2", show_default=True)
@click.option("--epochs", default=200, show_default=True)
@click.option("--recipe", "recipe_name", default="cifar", show_default=True)
@click.option("--device", default="cuda" if torch.cuda.is_available() else "cpu", show_default=True)
@click.option("--minutes", default=float("inf"), help="Begin no run after so many minutes.")
def run(data: str, models: str, seeds: str, epochs: int, recipe_name: str, device: str, minutes: float) -> None:
    """Train what is not there yet."""
    start = time.perf_counter()
    source = data if data.startswith("cifar10:") else f"imagefolder:{data}"
    loaded = load_data(source, seed=0)
    for seed in map(int, seeds.split(",")):
        for model in models.split(","):
            target = round(1 - PAPER[model].removed, 3)
            given = {"model.name": model, "target_flops": target, "recipe": recipe_name}
            recipe = load_config(None, given).recipe
            for variant in (DENSE, ATO):
                case = Case(variant, model, target, seed, len(loaded.train), epochs)
                if case in done(NAME) or time.perf_counter() - start > 60 * minutes:
                    continue
                result = train_case(case, loaded, recipe, SEARCHES["controller"], torch.device(device))
                append(NAME, {**asdict(case), **result, "recipe": asdict(recipe), "environment": environment()})
                spent = sum(result["seconds"].values())
                print(f"{model}, {variant}, seed {seed}: {100 * result['accuracy']:.2f} % in {spent:.0f} s", flush=True)


@cli.command()
def table() -> None:
    """Print the results as Markdown, each model with the paper's row."""
    for model, row in PAPER.items():
        print(f"\n{model}, {100 * row.removed:g} % of the FLOPs removed (paper: {row.dense:.2f} {row.change:+.2f})\n")
        print("\n".join(markdown((found for found in rows(NAME) if found["model"] == model), [DENSE, ATO])))


if __name__ == "__main__":
    cli()
