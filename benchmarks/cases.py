"""Training runs as lines of a file of results: what was run, what came out, and tables of it."""

import dataclasses
import itertools
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from record import rows
from torch import Tensor, nn

from atopipe.ato.discovery.find import find_groups
from atopipe.ato.execution import PRECISIONS, Execution
from atopipe.ato.groups import Groups
from atopipe.ato.recipe import Recipe
from atopipe.ato.search.budget import Budget
from atopipe.ato.search.cost import Cost, flops, kept_fraction
from atopipe.ato.search.mask_search import MakeSearch
from atopipe.ato.training.dense import train_dense
from atopipe.ato.training.loop import EpochRecord, accuracy
from atopipe.ato.training.objective import CrossEntropy, Distillation
from atopipe.ato.training.trainer import train
from atopipe.pipeline.data.dataset import Data
from atopipe.pipeline.models.build import build_model

DENSE, ATO = "dense", "ATO"
WATCHED = 500  # test images looked at after every epoch; the whole set is, once, at the end


@dataclass(frozen=True)
class Case:
    """One run: what makes its line in the results its own."""

    variant: str
    model: str
    target: float
    seed: int
    images: int
    epochs: int


def train_case(
    case: Case,
    data: Data,
    recipe: Recipe,
    search: MakeSearch,
    device: torch.device,
    teacher: nn.Module | None = None,
    keep: Callable[[nn.Module], None] = lambda network: None,
) -> dict[str, Any]:
    """Train, and test on the whole validation part: accuracy, cost and widths of the network, seconds per phase.

    `teacher`: what a pruned network learns from as well; `keep` is given the trained network.
    """
    torch.manual_seed(case.seed)
    model, example = build_model(case.model, len(data.labels)), torch.zeros(1, 3, *data.preprocessing.size)
    execution = Execution(PRECISIONS[recipe.precision](device), torch.channels_last)
    watched = torch.linspace(0, len(data.val) - 1, min(WATCHED, len(data.val))).long()
    epochs: list[EpochRecord] = []
    common: dict[str, Any] = {
        "train_batches": data.train.batches(
            recipe.batch_size, device=device, generator=torch.Generator().manual_seed(case.seed)
        ),
        "val_batches": data.val.take(watched).batches(WATCHED, device=device),
        "recipe": dataclasses.replace(recipe, epochs=case.epochs),
        "generator": torch.Generator().manual_seed(case.seed + 1000),
        "report": lambda happened: epochs.append(happened) if isinstance(happened, EpochRecord) else None,
        "execution": execution,
    }
    kept: dict[str, Any] = {"flops_ratio": 1.0}
    if case.variant == DENSE:
        trained, _ = train_dense(model.to(device), **common)
    else:
        groups = find_groups(model, example, torch.Generator().manual_seed(case.seed))
        cost = flops(model, groups, example)
        budget, learnt = Budget.of_dense(cost, case.target), taught_by(teacher, recipe, execution) if teacher else None
        result = train(model.to(device), groups, [budget], make_search=search, objective=learnt, **common)
        trained, kept = result.model.to(device), kept_by(groups, cost, result.mask)
    keep(trained)
    tested = accuracy(trained, data.val.batches(WATCHED, device=device), execution)
    return {
        "accuracy": tested,
        **kept,
        "flops_kept": [e.kept.get("flops", 1.0) for e in epochs],
        "seconds": seconds_by_phase(epochs),
    }


def kept_by(groups: Groups, cost: Cost, mask: Tensor) -> dict[str, Any]:
    """What a mask leaves of the FLOPs, and of every width."""
    widths = groups.widths(mask.cpu())
    shown = {s.name: f"{int(w)}/{s.size}" for s, w in zip(groups.sets, widths, strict=True)}
    return {"flops_ratio": kept_fraction(cost, widths), "widths": shown}


def seconds_by_phase(epochs: Sequence[EpochRecord]) -> dict[str, float]:
    """The seconds of all epochs of each phase."""
    return {phase: sum(e.seconds for e in epochs if e.phase == phase) for phase in {e.phase for e in epochs}}


def taught_by(teacher: nn.Module, recipe: Recipe, execution: Execution) -> Distillation:
    """Labels and the teacher, in the recipe's proportion."""
    settings, labels = recipe.distillation, CrossEntropy(recipe.weights.label_smoothing)
    return Distillation(labels, teacher, settings.weight, settings.temperature, execution)


def done(name: str, kind: type = Case) -> set[Any]:
    """The runs whose results are there, each as a `kind`: the dataclass of what makes a line its own."""
    names = [field.name for field in dataclasses.fields(kind)]
    return {kind(**{field: row[field] for field in names}) for row in rows(name)}


def markdown(found: Iterable[Mapping[str, Any]], order: Sequence[str]) -> Iterator[str]:
    """A table: one line per target and variant, mean, standard deviation and error over the seeds.

    Last, how far ATO is above the variant: the mean over the seeds that both have, with the error of that mean.
    """
    yield "| mask from | target | seeds | top-1, % | standard deviation | ATO is above by | FLOPs kept |"
    yield "|-|-:|-:|-:|-:|-:|-:|"
    ordered = sorted(found, key=lambda row: (-row["target"], order.index(row["variant"])))
    reference = {(row["target"], row["seed"]): 100 * row["accuracy"] for row in ordered if row["variant"] == ATO}
    for (target, variant), group in itertools.groupby(ordered, key=lambda row: (row["target"], row["variant"])):
        runs = list(group)
        values = {row["seed"]: 100 * row["accuracy"] for row in runs}
        ahead = [reference[target, seed] - value for seed, value in values.items() if (target, seed) in reference]
        mean, spread = statistics.mean(values.values()), _deviation(list(values.values()))
        kept = f"{min(row['flops_ratio'] for row in runs):.4f} to {max(row['flops_ratio'] for row in runs):.4f}"
        yield f"| {variant} | {target:g} | {len(runs)} | {mean:.2f} | {spread:.2f} | {_with_error(ahead)} | {kept} |"


def _with_error(values: Sequence[float]) -> str:
    if not values:
        return "-"
    return f"{statistics.mean(values):+.2f} ± {_deviation(values) / len(values) ** 0.5:.2f}"


def _deviation(values: Sequence[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else float("nan")
