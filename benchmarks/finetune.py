"""What pruning costs a trained network: dense, ATO, with a teacher, and the plain alternatives, all by one recipe.

    python benchmarks/finetune.py run --model net.py:lite0 --weights lite0.pth --normalize 0.498:0.502 \\
        --data imagefolder:PHOTOS --size 64 --epochs 20 --targets 0.5 --seeds 0,1,2
    python benchmarks/finetune.py table

Batches, starting weights, groups, seeds and re-estimated statistics are those of `atopipe run` with the same settings.
Every training is a line of results/finetune.jsonl; what is there is not run again. Dense networks are kept in the
folder `--teachers`, for those that learn from them.
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
from cases import ATO, DENSE, done, kept_by, markdown, seconds_by_phase, taught_by
from masks import FisherPrior, norms
from record import append, environment, rows
from safetensors.torch import load_file
from torch import Tensor, nn

from atopipe.ato.groups import Groups
from atopipe.ato.recipe import PhaseSettings, Recipe
from atopipe.ato.search.budget import Budget
from atopipe.ato.search.cost import flops
from atopipe.ato.search.mask_search import MakeSearch
from atopipe.ato.search.searches import SEARCHES
from atopipe.ato.training.dense import train_dense
from atopipe.ato.training.loop import EpochRecord, accuracy
from atopipe.ato.training.objective import Distillation
from atopipe.ato.training.trainer import train
from atopipe.pipeline.config.load import load_config
from atopipe.pipeline.engine.workspace import Stream, Workspace
from atopipe.pipeline.models.inference import save_tensors
from atopipe.pipeline.report.terminal import QuietDisplay

NAME = "finetune"
PLAIN, DISTILLED = "dense by plain SGD", "ATO taught by dense"
INSTANT = 1e-3  # of a run: a search that needs no steps, a removal at once


@dataclass(frozen=True)
class Case:
    """One training: what makes its line in the results its own."""

    variant: str
    model: str
    images: int
    size: int
    epochs: int
    target: float
    seed: int


@dataclass(frozen=True)
class Variant:
    """Where the mask comes from, and what differs from the recipe; `taught`: by the dense network of the seed."""

    search: MakeSearch = SEARCHES["controller"]
    change: Callable[[Recipe], Recipe] = lambda recipe: recipe
    taught: bool = False


def phases(dense: float, decay: float) -> Callable[[Recipe], Recipe]:
    """The mask is read off the weights after `dense`, and its groups are driven to zero during `decay`."""
    return lambda recipe: dataclasses.replace(recipe, phases=PhaseSettings(dense, INSTANT, decay))


def plain(recipe: Recipe) -> Recipe:
    """SGD with one rate for all layers, as a plain loop has it."""
    weights = dataclasses.replace(
        recipe.weights,
        optimizer="sgd",
        learning_rate=0.02,
        weight_decay=5e-4,
        warmup=0.0,
        head_rate=1.0,
        label_smoothing=0.0,
    )
    return dataclasses.replace(recipe, weights=weights)


def distillation(weight: float, temperature: float) -> Callable[[Recipe], Recipe]:
    """A change of how much is learnt from the teacher."""

    def change(recipe: Recipe) -> Recipe:
        settings = dataclasses.replace(recipe.distillation, weight=weight, temperature=temperature)
        return dataclasses.replace(recipe, distillation=settings)

    return change


VARIANTS: dict[str, Variant] = {
    PLAIN: Variant(change=plain),
    DENSE: Variant(),
    ATO: Variant(),
    DISTILLED: Variant(taught=True),
    "norms at the start": Variant(norms, phases(0.0, INSTANT)),
    "norms at a third": Variant(norms, phases(1 / 3, INSTANT)),
    "norms driven to zero over a third": Variant(norms, phases(0.1, 1 / 3)),
    "norm scales and uniform widths": Variant(SEARCHES["uniform"]),
    "random channels and uniform widths": Variant(SEARCHES["random"]),
    "ATO from a Fisher prior": Variant(FisherPrior),
    "ATO half taught by dense": Variant(change=distillation(0.5, 2.0), taught=True),
    "ATO taught by dense at temperature 4": Variant(change=distillation(0.9, 4.0), taught=True),
}


class Bench:
    """One configuration at one seed: what its trainings share."""

    def __init__(self, values: dict[str, Any], teachers: Path) -> None:
        self.workspace, self.teachers = Workspace(load_config(values=values), QuietDisplay()), teachers
        self.recipe = self.workspace.config.recipe

    def run(self, case: Case) -> dict[str, Any]:
        """Train, and test on the whole validation set: accuracy, cost and widths of the network, seconds per phase."""
        variant, model, epochs = VARIANTS[case.variant], self.workspace.first_model(), list[EpochRecord]()
        recipe = variant.change(self.recipe)
        batches = self.workspace.train_batches()
        if case.variant == PLAIN:
            batches = dataclasses.replace(batches, augment=mirrored)
        execution = self.workspace.execution(model)
        common: dict[str, Any] = {
            "train_batches": batches,
            "val_batches": self.workspace.val_batches(),
            "recipe": recipe,
            "generator": self.workspace.generator(Stream.TRAINING),
            "report": lambda happened: epochs.append(happened) if isinstance(happened, EpochRecord) else None,
            "execution": execution,
            "head": self.workspace.head(model),
            "calibration": self.workspace.calibration(execution),
        }
        kept: dict[str, Any] = {"flops_ratio": 1.0}
        if case.variant in (DENSE, PLAIN):
            trained, _ = train_dense(model, **common)
            if case.variant == DENSE:
                save_tensors(self._teacher_file(case), trained.state_dict())
        else:
            groups = self.groups(case, model)
            cost = flops(model, groups, self.workspace.example)
            taught = self._objective(case, recipe) if variant.taught else None
            budget = Budget.of_dense(cost, case.target)
            result = train(model, groups, [budget], make_search=variant.search, objective=taught, **common)
            trained, kept = result.model, kept_by(groups, cost, result.mask)
        seconds = seconds_by_phase(epochs)
        tested = accuracy(trained.eval(), self.workspace.val_batches(), execution)
        return {"accuracy": tested, **kept, "train_accuracy": epochs[-1].train_accuracy, "seconds": seconds}

    def groups(self, case: Case, model: nn.Module) -> Groups:
        """Found once for a network and a size, and kept beside the teachers."""
        file = self.teachers / f"groups-{case.model.rpartition(':')[2]}-{case.size}.json"
        if not file.exists():
            file.write_text(self.workspace.groups(model).to_json(), encoding="utf-8")
        return Groups.from_json(file.read_text(encoding="utf-8"))

    def _teacher_file(self, case: Case) -> Path:
        name = case.model.rpartition(":")[2]
        return self.teachers / f"{name}-{case.images}-{case.size}-{case.epochs}-{case.seed}.safetensors"

    def _objective(self, case: Case, recipe: Recipe) -> Distillation:
        teacher = self.workspace.new_model()
        teacher.load_state_dict(load_file(self._teacher_file(case)))
        return taught_by(teacher, recipe, self.workspace.execution(teacher))


def mirrored(images: Tensor, generator: torch.Generator) -> Tensor:
    """The images, half of them mirrored."""
    flips = torch.rand(len(images), 1, 1, 1, generator=generator) < 0.5
    return torch.where(flips, images.flip(3), images)


@click.group()
def cli() -> None:
    """A trained network, pruned in several ways."""


@cli.command()
@click.option("--model", required=True, help="As --model of atopipe run.")
@click.option("--weights", required=True, help="As --weights of atopipe run.")
@click.option("--normalize", default=None, help="As --normalize of atopipe run.")
@click.option("--data", required=True, help="As --data of atopipe run.")
@click.option("--size", default=64, show_default=True)
@click.option("--epochs", default=20, show_default=True)
@click.option("--variants", default=",".join(VARIANTS), show_default=True, help="Names with commas.")
@click.option("--targets", default="0.5", show_default=True)
@click.option("--seeds", default="0,1,2", show_default=True)
@click.option("--teachers", default="teachers", show_default=True, help="Folder for dense networks and groups.")
@click.option("--threads", default=1, show_default=True)
def run(variants: str, targets: str, seeds: str, teachers: str, **given: Any) -> None:
    """Train what is not there yet."""
    torch.set_num_threads(given["threads"])
    folder = Path(teachers)
    folder.mkdir(exist_ok=True)
    for seed, target, variant in itertools.product(seeds.split(","), targets.split(","), variants.split(",")):
        values = {
            "model.name": given["model"],
            "model.weights": given["weights"],
            "data.source": given["data"],
            "data.input_size": given["size"],
            "recipe.epochs": given["epochs"],
            "recipe.precision": "float32",
            "target_flops": target,
            "seed": int(seed),
            "threads": given["threads"],
            "device": "cpu",
        }
        bench = Bench({**values, "data.normalize": given["normalize"]} if given["normalize"] else values, folder)
        images, size, epochs = len(bench.workspace.data.train), given["size"], given["epochs"]
        limit = 1.0 if variant in (DENSE, PLAIN) else float(target)
        case = Case(variant, given["model"], images, size, epochs, limit, int(seed))
        if case in done(NAME, Case):
            continue
        start = time.perf_counter()
        result = bench.run(case)
        conditions = {"threads": given["threads"], **environment()}
        append(NAME, {**dataclasses.asdict(case), **result, "environment": conditions})
        minutes = (time.perf_counter() - start) / 60
        print(f"{variant}, seed {seed}, {target}: {result['accuracy']:.4f} in {minutes:.1f} min", flush=True)


@cli.command()
@click.option("--size", default=64, show_default=True)
@click.option("--epochs", default=20, show_default=True)
@click.option("--images", default=2000, show_default=True)
def table(size: int, epochs: int, images: int) -> None:
    """Print the results of one size and length as a Markdown table."""
    wanted = (size, epochs, images)
    found = [row for row in rows(NAME) if (row["size"], row["epochs"], row["images"]) == wanted]
    print("\n".join(markdown(found, list(VARIANTS))))


if __name__ == "__main__":
    cli()
