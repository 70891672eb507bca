"""What is the controller worth? Masks of several origins under one recipe, data order, budget and freeze step.

    python benchmarks/ablations.py run --data CIFAR --targets 0.5,0.3 --seeds 0,1,2
    python benchmarks/ablations.py table

CIFAR is a folder with train/<class>/ and test/<class>/ images. Every run is a line of results/ablations.jsonl; what is
there is not run again, and `--part 1/2` beside `--part 2/2` shares the work between two processes.
"""

import dataclasses
import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import torch
from cases import ATO, DENSE, Case, done, markdown, train_case
from masks import looking_at, norms, shares
from record import append, environment, rows
from safetensors.torch import load_file
from torch import nn

from atopipe.ato.recipe import ControllerSettings, PhaseSettings, ProjectionSettings, Recipe, WeightSettings
from atopipe.ato.search.controller_search import ControllerSearch
from atopipe.ato.search.mask_search import MakeSearch
from atopipe.ato.search.searches import SEARCHES
from atopipe.pipeline.data.dataset import Data, stratified
from atopipe.pipeline.data.load import load_data
from atopipe.pipeline.models.build import build_model
from atopipe.pipeline.models.inference import save_tensors

NAME = "ablations"
RECIPE = Recipe(
    batch_size=128,
    align=1,
    phases=PhaseSettings(search=0.25, decay=0.075),
    weights=WeightSettings("sgd", learning_rate=0.2, weight_decay=5e-4, warmup=0.2, label_smoothing=0.0),
)


@dataclass(frozen=True)
class Variant:
    """What stands in one row: where the mask comes from, and what differs from the common recipe and data.

    The weights are trained on `share` of the images; `held_out`: the controller looks at the others, and only at them.
    `taught`: the weights learn from the dense network of the same seed as well.
    """

    search: MakeSearch = SEARCHES["controller"]
    change: Callable[[Recipe], Recipe] = lambda recipe: recipe
    share: float = 1.0
    held_out: bool = False
    taught: bool = False


def controller(**settings: Any) -> Callable[[Recipe], Recipe]:
    """A change of the controller's settings."""
    return lambda recipe: dataclasses.replace(recipe, controller=dataclasses.replace(recipe.controller, **settings))


def authors(recipe: Recipe) -> Recipe:
    """The settings of the authors' code, but for the phases, and for the decay, which still ends at zero."""
    settings = ControllerSettings(
        learning_rate=1e-3,
        every=20,
        least_steps=1,
        batch_share=1.0,
        temperature=0.4,
        budget_weight=8.0,
        margin=0.005,
        anneal=0.0,
        statistics="running",
    )
    return dataclasses.replace(recipe, controller=settings, projection=ProjectionSettings(10.0, 1000.0))


def phases(**settings: float) -> Callable[[Recipe], Recipe]:
    """A change of the phases."""
    return lambda recipe: dataclasses.replace(recipe, phases=dataclasses.replace(recipe.phases, **settings))


def distillation(**settings: float) -> Callable[[Recipe], Recipe]:
    """A change of what is learnt from a teacher."""
    return lambda recipe: dataclasses.replace(recipe, distillation=dataclasses.replace(recipe.distillation, **settings))


def half_space(recipe: Recipe) -> Recipe:
    """With the half-space step of OTO in the decay."""
    return dataclasses.replace(recipe, projection=dataclasses.replace(recipe.projection, half_space=0.1))


ORIGINS: dict[str, Variant] = {
    DENSE: Variant(),
    ATO: Variant(),
    "norm scales over all sets": Variant(SEARCHES["magnitude"]),
    "norms over all sets": Variant(norms),
    "norm scales and uniform widths": Variant(SEARCHES["uniform"]),
    "random channels and uniform widths": Variant(SEARCHES["random"]),
    "settings of the authors": Variant(change=authors),
}
EARLY, EVEN, LATE = (1.4, 1.0, 0.7), (1.0, 1.0, 1.0), (0.7, 1.0, 1.4)
STREAMS = 1.7


def resnet20_shares(streams: float, stages: tuple[float, float, float]) -> Variant:
    """Widths of ResNet-20 in proportion: residual streams against what is inside the blocks, stage against stage."""
    of_stage = {f"stage{number}": share for number, share in enumerate(stages, start=1)}
    return Variant(
        shares(lambda name: of_stage[name.partition(".")[0]] * (streams if name.endswith(".2.conv2") else 1.0))
    )


WIDTHS: dict[str, Variant] = {
    "fixed widths, early stages wider": resnet20_shares(1.0, EARLY),
    "fixed widths, late stages wider": resnet20_shares(1.0, LATE),
    "fixed widths, streams wider": resnet20_shares(STREAMS, EVEN),
    "fixed widths, streams and late stages wider": resnet20_shares(STREAMS, LATE),
}
SEARCH_DATA: dict[str, Variant] = {
    "9 of 10 images for both": Variant(share=0.9),
    "9 of 10 images for the weights and the tenth for the controller": Variant(share=0.9, held_out=True),
}
TAUGHT: dict[str, Variant] = {
    "ATO taught by dense": Variant(taught=True),
    "ATO half taught by dense": Variant(change=distillation(weight=0.5), taught=True),
    "ATO taught by dense at temperature 4": Variant(change=distillation(temperature=4.0), taught=True),
}
SETTINGS: dict[str, Variant] = {
    "temperature 0.4": Variant(change=controller(temperature=0.4)),
    "running statistics": Variant(change=controller(statistics="running")),
    "no annealing": Variant(change=controller(anneal=0.0)),
    "whole batches": Variant(change=controller(batch_share=1.0)),
    "half-space step": Variant(change=half_space),
    "controller every 2nd step": Variant(change=controller(every=2, least_steps=1)),
}
DEFAULTS, PHASES = RECIPE.controller, RECIPE.phases
SENSITIVITY: dict[str, Variant] = {
    f"{name} x {factor:g}": Variant(change=change)
    for factor in (0.5, 2.0)
    for name, change in {
        "controller learning rate": controller(learning_rate=DEFAULTS.learning_rate * factor),
        "budget weight": controller(budget_weight=DEFAULTS.budget_weight * factor),
        "temperature": controller(temperature=DEFAULTS.temperature * factor),
        "offset": controller(offset=DEFAULTS.offset * factor),
        "length of the search": phases(search=PHASES.search * factor),
    }.items()
}
VARIANTS = {**ORIGINS, **WIDTHS, **SEARCH_DATA, **TAUGHT, **SETTINGS, **SENSITIVITY}


def divided(data: Data, variant: Variant, seed: int) -> tuple[Data, MakeSearch]:
    """The data that the weights see, and what searches for the mask, with separate images if requested."""
    count, generator = len(data.train), torch.Generator().manual_seed(seed)
    seen = stratified(data.train.labels, round(variant.share * count), generator)
    search = variant.search
    if variant.held_out:
        others = torch.ones(count, dtype=torch.bool).index_fill(0, seen, False).nonzero().flatten()
        search = looking_at(data.train.take(others).batches(RECIPE.batch_size, device="cpu", generator=generator))
    return dataclasses.replace(data, train=data.train.take(seen)), search


def dense_network(case: Case, data: Data, recipe: Recipe, folder: Path) -> nn.Module:
    """The dense network of the case's seed, trained if it is not in `folder` yet."""
    file = folder / f"{case.model}-{case.images}-{case.epochs}-{case.seed}.safetensors"
    network = build_model(case.model, len(data.labels))
    if not file.exists():
        folder.mkdir(exist_ok=True)
        dense = dataclasses.replace(case, variant=DENSE)
        train_case(
            dense,
            data,
            recipe,
            ControllerSearch,
            torch.device("cpu"),
            keep=lambda n: save_tensors(file, n.state_dict()),
        )
    network.load_state_dict(load_file(file))
    return network


@click.group()
def cli() -> None:
    """Masks of several origins, compared."""


@cli.command()
@click.option("--data", required=True, help="Folder with train/<class>/ and test/<class>/ images.")
@click.option("--model", default="resnet20", show_default=True)
@click.option("--variants", default=",".join(ORIGINS), show_default=True, help="'all', or names with commas.")
@click.option("--targets", default="0.5,0.3", show_default=True)
@click.option("--seeds", default="0,1,2", show_default=True)
@click.option("--images", default=10_000, show_default=True, help="Training images.")
@click.option("--epochs", default=12, show_default=True)
@click.option("--learning-rate", default=RECIPE.weights.learning_rate, show_default=True, help="Of the weights.")
@click.option("--teachers", default="teachers", show_default=True, help="Folder for the dense networks that teach.")
@click.option("--part", default="1/1", show_default=True, help="Which part of the runs this process takes.")
@click.option("--threads", default=1, show_default=True)
def run(
    data: str,
    model: str,
    variants: str,
    targets: str,
    seeds: str,
    images: int,
    epochs: int,
    learning_rate: float,
    part: str,
    teachers: str,
    threads: int,
) -> None:
    """Train what is not there yet."""
    torch.set_num_threads(threads)
    number, parts = map(int, part.split("/"))
    common = dataclasses.replace(RECIPE, weights=dataclasses.replace(RECIPE.weights, learning_rate=learning_rate))
    names = list(VARIANTS) if variants == "all" else variants.split(",")
    chosen = load_data(f"imagefolder:{data}", seed=0).subset(images, torch.Generator().manual_seed(0))
    wanted = itertools.product(map(int, seeds.split(",")), map(float, targets.split(",")), names)
    cases = [Case(name, model, target, seed, images, epochs) for seed, target, name in wanted]
    cases = [case for case in cases if case.variant != DENSE or case.target == float(targets.split(",")[0])]
    for case in cases[number - 1 :: parts]:
        if case not in done(NAME):
            start = time.perf_counter()
            variant = VARIANTS[case.variant]
            seen, search = divided(chosen, variant, case.seed)
            teacher = dense_network(case, chosen, common, Path(teachers)) if variant.taught else None
            result = train_case(case, seen, variant.change(common), search, torch.device("cpu"), teacher)
            conditions = {"learning_rate": learning_rate, "environment": {"threads": threads, **environment()}}
            append(NAME, {**dataclasses.asdict(case), **result, **conditions})
            minutes = (time.perf_counter() - start) / 60
            print(
                f"{case.variant}, seed {case.seed}, {case.target:g}: {result['accuracy']:.4f} in {minutes:.1f} min",
                flush=True,
            )


@cli.command()
@click.option("--model", default="resnet20", show_default=True)
def table(model: str) -> None:
    """Print the results of one model as a Markdown table."""
    print("\n".join(markdown((row for row in rows(NAME) if row["model"] == model), list(VARIANTS))))


if __name__ == "__main__":
    cli()
