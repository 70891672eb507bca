"""Train the dense network while the controller learns which groups to keep.

Leaves weights.safetensors (dense shape, masked groups exactly zero), groups.json, masks.safetensors, data.json,
history.json, execution.json and, where training started from trained weights, starting_weights.json, which says from
which.
"""

from typing import TYPE_CHECKING

from atopipe.pipeline.config.load import FINETUNE, follows
from atopipe.pipeline.config.schema import BASELINE, Config
from atopipe.pipeline.config.settings import TARGETS
from atopipe.pipeline.engine.process_group import broadcast_bytes
from atopipe.pipeline.engine.stage import Context, Stage
from atopipe.pipeline.engine.start import described
from atopipe.pipeline.engine.teacher import objective
from atopipe.pipeline.engine.training import record_data, save_training, training_session
from atopipe.pipeline.engine.workspace import Stream
from atopipe.pipeline.models.inference import save_tensors
from atopipe.pipeline.report.summary import both_readings
from atopipe.pipeline.rundir.layout import STARTING_WEIGHTS
from atopipe.pipeline.stages.profile.measure import mask_choice
from atopipe.pipeline.stages.profile.table import latency_cost
from atopipe.pipeline.system.files import write_json, write_text

if TYPE_CHECKING:
    from torch import Tensor, nn

    from atopipe.ato.groups import Groups
    from atopipe.ato.search.budget import Budget
    from atopipe.ato.search.cost import Cost


NAMED = 2  # unprunable widths that are named before training; `atopipe inspect` names all


def run(context: Context) -> dict[str, float]:
    from atopipe.ato.training.trainer import train

    config, workspace = context.config, context.workspace
    workspace.check_model()
    workspace.train_batches()  # refused before the network is traced if they are too large
    if workspace.job.rank == 0:
        record_data(context)
    model = workspace.first_model()
    groups = _groups(context, model)
    budgets = _budgets(context, model, groups)
    dense = {budget.cost.name: budget.cost.dense for budget in budgets}
    if config.model.weights is not None and follows(config, FINETUNE):
        context.display.say("recipe  finetune, because training starts from weights: --recipe NAME for another")
    context.display.say(f"groups  {_described(groups)}")
    context.display.say(f"target  {both_readings(config.targets, dense)}")
    if config.preflight:
        context.display.say(f"preflight ok: {workspace.preflight(model, groups, budgets).as_text()}")

    execution, choose = workspace.execution(model), mask_choice(context, model, groups, budgets)
    head, taught = workspace.head(model), objective(context, execution)
    with training_session(context) as (batches, checkpointer, report):
        trained = train(
            model.to(workspace.device),
            groups,
            budgets,
            train_batches=batches.train,
            val_batches=batches.val,
            recipe=config.recipe,
            generator=workspace.generator(Stream.TRAINING),
            report=report,
            execution=execution,
            choose=choose,
            objective=taught,
            head=head,
            calibration=workspace.calibration(execution),
            checkpointer=checkpointer,
        )
    if workspace.job.rank > 0:
        return {}
    write_text(context.folder / "groups.json", groups.to_json())
    _save_masks(context, groups, trained.mask)
    if weights := described(config):
        write_json(context.folder / STARTING_WEIGHTS, weights)
    return {"time.epochs_s": save_training(context, trained.model, trained.history, execution)}


def reads(config: Config, stage: str) -> bool:
    """The dense network is read where it teaches."""
    return stage != BASELINE or config.teacher == BASELINE


def _groups(context: Context, model: "nn.Module") -> "Groups":
    """What may be pruned, found by the first process alone: found twice, groups may differ."""
    from atopipe.ato.groups import Groups

    job = context.workspace.job
    if job.size == 1:
        return context.workspace.groups(model)
    found = context.workspace.groups(model).to_json() if job.rank == 0 else ""
    return Groups.from_json(broadcast_bytes(found.encode()).decode())


def _budgets(context: Context, model: "nn.Module", groups: "Groups") -> "list[Budget]":
    """One for each target; latency has its cost from the table of stage profile."""
    from atopipe.ato.search.budget import Budget
    from atopipe.ato.search.cost import COSTS

    budgets: list[Budget] = []
    for name, target in context.config.targets.items():
        cost: Cost
        if name == "latency":
            cost, error = latency_cost(context, model, groups)
            context.display.say(
                f"fitted  latency, off by {100 * error.mean:.1f} % on average and {100 * error.largest:.1f} % at most "
                f"on {error.networks} networks it has not seen"
            )
        else:
            cost = COSTS[name](model, groups, context.workspace.example)
        budgets.append(Budget(cost, target.limit(cost.dense)))
    return budgets


def _save_masks(context: Context, groups: "Groups", mask: "Tensor") -> None:
    parts = groups.split(mask.cpu().bool())
    masks = {group_set.name: part for group_set, part in zip(groups.sets, parts, strict=True)}
    save_tensors(context.folder / "masks.safetensors", masks)


def _described(groups: "Groups") -> str:
    """How much can be pruned, and what is not with its reason, so that nothing is skipped in silence."""
    named = [f"'{u.name}' ({u.reason})" for u in groups.unprunable[:NAMED]]
    more = len(groups.unprunable) - len(named)
    whole = "; ".join(named) + (f"; and {more} more, see 'atopipe inspect'" if more else "")
    widths = f"{groups.total:,} channel groups in {len(groups.sets)} widths can be pruned"
    limit = "" if groups.proven_in_training else "; not proven while training, where outputs are random"
    return (f"{widths}; not pruned: {whole}" if whole else widths) + limit


STAGE = Stage(
    name="train",
    run=run,
    inputs=("profile", BASELINE),
    reads=reads,
    settings=("model", "data", *TARGETS, "recipe", "teacher", "seed", "device"),
    libraries=("torch", "torchvision", "torch-pruning", "numpy"),
    distributed=True,
)
