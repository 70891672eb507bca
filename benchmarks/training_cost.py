"""What train-and-prune costs beside plain dense training: same loop, same machine, step by step in turn.

    python benchmarks/training_cost.py [--model resnet50] [--target 0.3] [--steps 12]

Every step of the pruning run is followed by a step of the dense one, so that a busy machine slows both; each phase's
seconds are a median, and a controller step is what a search step with one takes beyond one without. The ratio of a
whole run of `--iterations` steps follows from the schedule of the recipe. The last line is `total ratio 0.xx`.
"""

import dataclasses
import statistics
import time
from collections import defaultdict
from collections.abc import Callable

import click
import torch
from record import append, environment
from torch import Tensor, nn

from atopipe.ato.discovery.find import find_groups
from atopipe.ato.execution import PRECISIONS, Execution, best_memory_format
from atopipe.ato.recipe import PhaseSettings, Recipe
from atopipe.ato.schedule import Phase, Schedule
from atopipe.ato.search.budget import Budget
from atopipe.ato.search.cost import flops
from atopipe.ato.training.dense import DenseTrainer
from atopipe.ato.training.trainer import Trainer
from atopipe.pipeline.config.load import load_config
from atopipe.pipeline.models.build import build_model

CLASSES = 10
EQUAL_PHASES = PhaseSettings(dense=0.25, search=0.25, decay=0.25)
Steps = DenseTrainer | Trainer


@dataclasses.dataclass(frozen=True)
class Bench:
    """The two runs that are compared, on one batch."""

    pruned: Trainer
    dense: DenseTrainer
    images: Tensor
    labels: Tensor


def prepare(name: str, size: int, recipe: Recipe, target: float, steps: int, device: torch.device) -> Bench:
    """Both trainers on equal networks; the pruning run's phases are equally long, for equally good medians."""
    torch.manual_seed(0)
    model, example = build_model(name, CLASSES), torch.zeros(1, 3, size, size)
    dense = build_model(name, CLASSES)
    groups = find_groups(model, example, torch.Generator().manual_seed(0))
    budget = Budget.of_dense(flops(model, groups, example), target)
    execution = Execution(PRECISIONS[recipe.precision](device), best_memory_format(model, example), _wrap(recipe))
    even = dataclasses.replace(
        recipe, phases=EQUAL_PHASES, controller=dataclasses.replace(recipe.controller, every=2, least_steps=1)
    )
    generators = [torch.Generator().manual_seed(seed) for seed in (0, 1)]
    trainer = Trainer(model.to(device), groups, [budget], even, 4 * steps, generators[0], execution)
    baseline = DenseTrainer(dense.to(device), even, 4 * steps, generators[1], execution)
    images = torch.randn(recipe.batch_size, 3, size, size, device=device)
    return Bench(trainer, baseline, images, torch.randint(CLASSES, (recipe.batch_size,), device=device))


def _wrap(recipe: Recipe) -> Callable[[nn.Module], Callable[[Tensor], Tensor]]:
    return torch.compile if recipe.compile else lambda model: model


def seconds(trainer: Steps, bench: Bench) -> float:
    """Wall seconds of one step, the device's work included."""
    start = time.perf_counter()
    loss, _ = trainer.step(bench.images, bench.labels)
    float(loss)
    return time.perf_counter() - start


def measure(bench: Bench, warm_up: int) -> dict[str, list[tuple[float, float]]]:
    """Pairs of seconds (pruning step, dense step) per kind of step; the first ones of each kind are left out."""
    for _ in range(warm_up):
        seconds(bench.dense, bench)
    pairs = defaultdict(list)
    for step in range(bench.pruned.total_steps):
        kind = str(bench.pruned.phase) + (" with controller" if step in bench.pruned.controller_steps else "")
        pairs[kind].append((seconds(bench.pruned, bench), seconds(bench.dense, bench)))
    return {kind: found[min(warm_up, len(found) - 1) :] for kind, found in pairs.items()}


def ratios(pairs: dict[str, list[tuple[float, float]]]) -> dict[str, float]:
    """Median over the pairs of (pruning step / dense step), per kind of step."""
    return {kind: statistics.median(ours / dense for ours, dense in found) for kind, found in pairs.items()}


def total_ratio(per_kind: dict[str, float], recipe: Recipe, iterations: int) -> float:
    """Time of a pruning run of so many iterations as a fraction of a dense run's."""
    schedule = Schedule.of(recipe.phases, iterations)
    steps = schedule.controller_steps(recipe.controller.every, recipe.controller.least_steps)
    lengths = {
        Phase.DENSE: schedule.dense_end,
        Phase.SEARCH: schedule.search_end - schedule.dense_end,
        Phase.DECAY: schedule.decay_end - schedule.search_end,
        Phase.SMALL: schedule.total - schedule.decay_end,
    }
    extra = len(steps) * (per_kind["search with controller"] - per_kind["search"])
    return (sum(length * per_kind[phase] for phase, length in lengths.items()) + extra) / iterations


@click.command()
@click.option("--model", default="resnet50", show_default=True)
@click.option("--size", default=32, show_default=True, help="Pixels of the square input.")
@click.option("--batch", default=64, show_default=True)
@click.option("--recipe", "recipe_name", default="cifar", show_default=True)
@click.option("--target", default=0.3, show_default=True)
@click.option("--iterations", default=5000, show_default=True, help="Length of the run that is extrapolated to.")
@click.option("--steps", default=12, show_default=True, help="Measured steps per phase.")
@click.option("--device", default="cuda" if torch.cuda.is_available() else "cpu", show_default=True)
@click.option("--threads", default=2, show_default=True)
@click.option("--compile", "compiled", is_flag=True, help="Through torch.compile.")
def main(
    model: str,
    size: int,
    batch: int,
    recipe_name: str,
    target: float,
    iterations: int,
    steps: int,
    device: str,
    threads: int,
    compiled: bool,
) -> None:
    """Measure, print one line per kind of step, and the total."""
    torch.set_num_threads(threads)
    given = {"model.name": model, "target_flops": target, "recipe": recipe_name}
    recipe = dataclasses.replace(load_config(None, given).recipe, batch_size=batch, compile=compiled)
    bench = prepare(model, size, recipe, target, steps, torch.device(device))
    pairs = measure(bench, warm_up=3)
    per_kind = ratios(pairs)
    for kind, found in pairs.items():
        ours, dense = (batch / statistics.median(times) for times in zip(*found, strict=True))
        print(f"{kind:<24} {ours:8.1f} images/s, dense {dense:8.1f} images/s, time ratio {per_kind[kind]:.3f}")
    total = total_ratio(per_kind, recipe, iterations)
    append(
        "training_cost",
        {**_settings(click.get_current_context()), "ratios": per_kind, "total": total} | {"environment": environment()},
    )
    print(f"total ratio {total:.2f}")


def _settings(context: click.Context) -> dict[str, object]:
    return dict(context.params)


if __name__ == "__main__":
    main()
