"""Train the dense network while the controller learns which groups to keep.

Leaves weights.safetensors (dense shape, masked groups exactly zero), groups.json, masks.safetensors, data.json,
history.json, execution.json and, where training started from trained weights, starting_weights.json, which says from
which.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
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
from atopipe.pipeline.rundir.checkpoints import unpacked
from atopipe.pipeline.rundir.layout import GROUPS, SEARCH, SEARCHED, STARTING_WEIGHTS
from atopipe.pipeline.stages.profile.measure import mask_choice
from atopipe.pipeline.stages.profile.table import fitted_latency
from atopipe.pipeline.system.files import write_json, write_text

if TYPE_CHECKING:
    from torch import Tensor, nn

    from atopipe.ato.execution import Execution
    from atopipe.ato.groups import Groups
    from atopipe.ato.search.budget import Budget
    from atopipe.ato.search.cost import Cost
    from atopipe.ato.search.latency import FittedLatency
    from atopipe.ato.search.selection import ChooseMask, WidthSteps
    from atopipe.ato.snapshot import Snapshot
    from atopipe.ato.training.trainer import Trained
    from atopipe.pipeline.config.targets import Target


NAMED = 2  # unprunable widths that are named before training; `atopipe inspect` names all


@dataclass(frozen=True, eq=False)
class Prepared:
    """What a run trains and prunes: the network, what may be removed from it, and what that must achieve."""

    model: "nn.Module"
    groups: "Groups"
    budgets: "list[Budget]"
    execution: "Execution"
    latency: "FittedLatency | None"  # where there is a budget in it
    steps: "WidthSteps | None"  # of the widths, where they were measured


def run(context: Context) -> dict[str, float]:
    prepared = prepare(context, context.config.targets)
    choose = mask_choice(context, prepared.model, prepared.groups, prepared.budgets, prepared.latency)
    train = training(context, prepared)
    with training_session(context, _start(context, prepared, choose)) as (batches, checkpointer, report):
        trained = train(
            train_batches=batches.train,
            val_batches=batches.val,
            report=report,
            choose=choose,
            checkpointer=checkpointer,
        )
    if context.workspace.job.rank > 0:
        return {}
    write_text(context.folder / GROUPS, prepared.groups.to_json())
    _save_masks(context, prepared.groups, trained.mask)
    if weights := described(context.config):
        write_json(context.folder / STARTING_WEIGHTS, weights)
    seconds = save_training(context, trained.model, trained.history, prepared.execution)
    return {"time.epochs_s": seconds, **_predicted(prepared, trained.mask)}


def _predicted(prepared: Prepared, mask: "Tensor") -> dict[str, float]:
    """What the fit expects of the latency, where there is a budget in it."""
    from atopipe.ato.search.cost import kept_fraction

    if prepared.latency is None:
        return {}
    widths = prepared.groups.widths(mask.cpu()).double()
    return {"latency.predicted_ratio": kept_fraction(prepared.latency.cost, widths)}


def prepare(context: Context, targets: "Mapping[str, Target]") -> Prepared:
    """Everything that comes before the first step; whoever looks at the terminal is told of it."""
    config, workspace = context.config, context.workspace
    workspace.check_model()
    workspace.train_batches()  # refused before the network is traced if they are too large
    if workspace.job.rank == 0:
        record_data(context)
    model = workspace.first_model()
    groups = _groups(context, model)
    latency = _fitted(context, model, groups) if "latency" in targets else None
    budgets = _budgets(context, model, groups, targets, latency)
    steps = latency.steps if latency is not None and config.recipe.align == "auto" else None
    dense = {budget.cost.name: budget.cost.dense for budget in budgets}
    if config.model.weights is not None and follows(config, FINETUNE):
        context.display.say("recipe  finetune, because training starts from weights: --recipe NAME for another")
    context.display.say(f"groups  {_described(groups)}")
    context.display.say(f"target  {both_readings(targets, dense)}")
    if config.preflight and not _is_searched(context):
        context.display.say(f"preflight ok: {workspace.preflight(model, groups, budgets, steps).as_text()}")
    return Prepared(model, groups, budgets, workspace.execution(model), latency, steps)


def training(context: Context, prepared: Prepared) -> "Callable[..., Trained]":
    """`train` of `ato`, with everything that does not depend on who keeps its snapshots."""
    from atopipe.ato.training.trainer import train

    workspace = context.workspace
    head, taught = workspace.head(prepared.model), objective(context, prepared.execution)
    return partial(
        train,
        prepared.model.to(workspace.device),
        prepared.groups,
        prepared.budgets,
        recipe=context.config.recipe,
        generator=workspace.generator(Stream.TRAINING),
        execution=prepared.execution,
        objective=taught,
        head=head,
        calibration=workspace.calibration(prepared.execution),
        width_steps=prepared.steps,
    )


def _start(context: Context, prepared: Prepared, choose: "ChooseMask") -> "Callable[[], Snapshot | None]":
    """Where the run begins if it has no checkpoint: at the end of a shared search, where there is one."""

    def begin() -> "Snapshot | None":
        if not _is_searched(context):
            return None
        from atopipe.ato.training.shared_search import SharedSearch, passed_at

        recipe, budgets, targets = context.config.recipe, prepared.budgets, shared_targets(context.config)
        far = [replace(b, limit=targets[b.cost.name].limit(b.cost.dense)) for b in budgets]
        found = SharedSearch.of(unpacked(context.input(SEARCH, SEARCHED).read_bytes()))
        scores = found.scores_at(passed_at(budgets, far, recipe))
        return found.branch(choose(scores, prepared.groups, budgets, prepared.steps or recipe.align))

    return begin


def shared_targets(config: Config) -> "Mapping[str, Target]":
    """Those that the search of a run goes on to: its own, unless it is shared with runs of tighter ones."""
    far = config.targets if config.shared_search is None else config.shared_search.targets
    return {cost: far[cost] for cost in config.targets}


def _is_searched(context: Context) -> bool:
    return SEARCH in context.stage.inputs and context.config.shared_search is not None


def reads(config: Config, stage: str) -> bool:
    """The dense network is read where it teaches."""
    return stage != BASELINE or config.teacher == BASELINE


def _groups(context: Context, model: "nn.Module") -> "Groups":
    """What may be pruned, found by the first process alone, and once: found twice, groups may differ."""
    from atopipe.ato.groups import Groups

    job = context.workspace.job
    if job.size == 1 and not _is_searched(context):
        return context.workspace.groups(model)
    found = _found_groups(context, model) if job.rank == 0 else ""
    return Groups.from_json((broadcast_bytes(found.encode()) if job.size > 1 else found.encode()).decode())


def _found_groups(context: Context, model: "nn.Module") -> str:
    if _is_searched(context):
        return context.input(SEARCH, GROUPS).read_text(encoding="utf-8")
    return context.workspace.groups(model).to_json()


def _fitted(context: Context, model: "nn.Module", groups: "Groups") -> "FittedLatency":
    """What stage profile found of the latency; whoever looks at the terminal is told how well it is known."""
    found = fitted_latency(context, model, groups)
    context.display.say(
        f"fitted  latency, off by {100 * found.error.mean:.1f} % on average and {100 * found.error.largest:.1f} % at "
        f"most on {found.error.networks} networks it has not seen; efficient in blocks of {found.cost.block} channels"
    )
    return found


def _budgets(
    context: Context,
    model: "nn.Module",
    groups: "Groups",
    targets: "Mapping[str, Target]",
    latency: "FittedLatency | None",
) -> "list[Budget]":
    """One for each target; latency has its cost from the table of stage profile."""
    from atopipe.ato.search.budget import Budget
    from atopipe.ato.search.cost import COSTS

    budgets: list[Budget] = []
    for name, target in targets.items():
        cost: Cost
        if latency is not None and name == "latency":
            cost = latency.cost
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
    inputs=("profile", BASELINE, SEARCH),
    reads=reads,
    settings=("model", "data", *TARGETS, "shared_search", "recipe", "teacher", "seed", "device"),
    libraries=("torch", "torchvision", "torch-pruning", "numpy"),
    distributed=True,
)
