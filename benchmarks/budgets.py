"""Is the budget met? A tiny run of the search for several networks and targets, and what the frozen mask keeps.

    python benchmarks/budgets.py

The last line is the largest part of the dense FLOPs by which a frozen mask stays below its target.
"""

import itertools

import click
import torch
from record import append, environment

from atopipe.ato.discovery.find import find_groups
from atopipe.ato.execution import PRECISIONS, Execution
from atopipe.ato.recipe import Align, Recipe
from atopipe.ato.search.budget import Budget, BudgetError
from atopipe.ato.search.controller_search import ControllerSearch
from atopipe.ato.search.cost import flops, kept_fraction
from atopipe.ato.search.mask_search import SearchProblem
from atopipe.pipeline.models.build import build_model

MODELS = {"resnet50": 64, "resnet56": 32, "mobilenet_v2": 64, "densenet121": 64}  # pixels of the square input
TARGETS = (0.15, 0.3, 0.5, 0.7)
CLASSES, BATCH = 10, 8


@click.command()
@click.option("--steps", default=4, show_default=True, help="Controller steps per search.")
@click.option("--align", default="auto", show_default=True)
@click.option("--threads", default=1, show_default=True)
def main(steps: int, align: str, threads: int) -> None:
    """Search, freeze, and print target and result."""
    torch.set_num_threads(threads)
    channels: Align = "auto" if align == "auto" else int(align)
    unused = [0.0]
    for name, target in itertools.product(MODELS, TARGETS):
        try:
            kept = freeze(name, target, steps, channels)
        except BudgetError as error:
            print(f"{name:<14} {target:<5g} {error}", flush=True)
            continue
        unused.append(target - kept)
        print(f"{name:<14} {target:<5g} kept {kept:.4f}, unused {target - kept:.4f}", flush=True)
        row = {"model": name, "target": target, "kept": kept, "steps": steps, "align": align}
        append("budgets", {**row, "environment": environment()})
    print(f"largest part unused {max(unused):.4f}")


def freeze(name: str, target: float, steps: int, align: Align) -> float:
    """The FLOPs that the frozen mask of a short search keeps, a fraction of dense."""
    torch.manual_seed(0)
    model, example = build_model(name, CLASSES), torch.zeros(1, 3, MODELS[name], MODELS[name])
    groups = find_groups(model, example, torch.Generator().manual_seed(0))
    cost = flops(model, groups, example)
    generator = torch.Generator().manual_seed(0)
    execution = Execution(PRECISIONS["auto"](torch.device("cpu")))
    budget = Budget.of_dense(cost, target)
    search = ControllerSearch(SearchProblem(model, groups, [budget], Recipe(align=align), generator, execution))
    for step in range(steps):
        images = torch.randn(BATCH, *example.shape[1:], generator=generator)
        search.step(images, torch.arange(BATCH) % CLASSES, (step + 1) / steps)
    mask = search.best_mask()
    widths = groups.widths(mask)
    assert budget.holds(widths)
    return kept_fraction(cost, widths)


if __name__ == "__main__":
    main()
