"""Train the dense network while the controller learns which groups to keep.

Leaves weights.safetensors (dense shape, masked groups exactly zero), masks.safetensors and history.json.
"""

from dataclasses import asdict
from typing import TYPE_CHECKING

from atopipe.pipeline.config import COST_NAMES, TARGETS
from atopipe.pipeline.networks import save_tensors
from atopipe.pipeline.run_directory import write_json
from atopipe.pipeline.runner import Context
from atopipe.pipeline.summary import both_readings

if TYPE_CHECKING:
    from atopipe.ato.groups import Groups
    from atopipe.ato.trainer import EpochRecord, Progress, Trained

NAME = "train"
INPUTS: tuple[str, ...] = ()
SETTINGS = ("model", "data", *TARGETS, "recipe", "seed", "device")
LIBRARIES = ("torch", "torchvision", "torch-pruning", "numpy")
NAMED = 2  # unprunable widths that are named before training; `atopipe inspect` names all


def run(context: Context) -> dict[str, float]:
    from atopipe.ato.resources import COSTS
    from atopipe.ato.selection import Budget
    from atopipe.ato.trainer import train

    config, workspace = context.config, context.workspace
    recipe = config.recipe
    workspace.check_model()
    model = workspace.first_model()
    groups = workspace.groups(model)
    budgets = [
        Budget(COST_NAMES[cost], COSTS[cost](model, groups, workspace.example), target)
        for cost, target in config.targets.items()
    ]
    context.display.say(f"groups  {_described(groups)}")
    context.display.say(f"target  {both_readings(config.targets)}")
    if config.preflight:
        context.display.say(f"tried   {workspace.rehearse(model, groups, budgets).as_text()}")

    device, data, order = workspace.device, workspace.data, workspace.generator(1)
    trained = train(
        model.to(device),
        groups,
        budgets,
        train_batches=data.train.batches(recipe.batch_size, device=device, generator=order),
        val_batches=data.val.batches(recipe.batch_size, device=device),
        recipe=recipe,
        generator=workspace.generator(2),
        report=lambda happened: _show(context, happened),
    )
    _save(context, groups, trained)
    return {}


def _save(context: Context, groups: "Groups", trained: "Trained") -> None:
    parts = groups.split(trained.mask.cpu().bool())
    masks = {group_set.name: part for group_set, part in zip(groups.sets, parts, strict=True)}
    save_tensors(context.folder / "weights.safetensors", trained.model.state_dict())
    save_tensors(context.folder / "masks.safetensors", masks)
    write_json(context.folder / "history.json", [asdict(record) for record in trained.history])


def _described(groups: "Groups") -> str:
    """How much can be pruned, and what stays whole with its reason, so that nothing is skipped in silence."""
    named = [f"'{u.name}' ({u.reason})" for u in groups.unprunable[:NAMED]]
    more = len(groups.unprunable) - len(named)
    whole = "; ".join(named) + (f"; and {more} more, see 'atopipe inspect'" if more else "")
    widths = f"{groups.total:,} groups of channels in {len(groups.sets)} widths can be pruned"
    return f"{widths}; stays whole: {whole}" if whole else widths


def _show(context: Context, happened: "Progress | EpochRecord") -> None:
    from atopipe.ato.trainer import EpochRecord

    if isinstance(happened, EpochRecord):
        context.display.epoch(happened)
        context.run.event("epoch", **asdict(happened))
    else:
        context.display.progress(happened)
