"""Train the dense network and search, towards targets at or below the run's own, until the mask would be frozen.

Only where a search is shared: runs that differ in their targets alone have the same result, which each can take over,
and go on from there with a mask for its own targets. Leaves groups.json, data.json and search.safetensors: the run at
that step, and the scores on the way.
"""

from atopipe.pipeline.config.schema import BASELINE, Config
from atopipe.pipeline.engine.stage import Context, Stage
from atopipe.pipeline.engine.training import training_session
from atopipe.pipeline.rundir.checkpoints import packed
from atopipe.pipeline.rundir.layout import GROUPS, SEARCH, SEARCHED
from atopipe.pipeline.stages.train import prepare, shared_targets, training
from atopipe.pipeline.system.files import write_bytes, write_text


def run(context: Context) -> dict[str, float]:
    from functools import partial

    from atopipe.ato.training.shared_search import search_for_all

    prepared = prepare(context, shared_targets(context.config))
    train = training(context, prepared)
    with training_session(context) as (batches, checkpointer, report):
        begun = partial(train, train_batches=batches.train, val_batches=batches.val, report=report)
        found = search_for_all(begun, checkpointer, context.config.recipe)
    if context.workspace.job.rank == 0:
        write_text(context.folder / GROUPS, prepared.groups.to_json())
        write_bytes(context.folder / SEARCHED, packed(found.as_snapshot()))
    return {}


def is_shared(config: Config) -> bool:
    """Whether the search of the run goes on to other targets than its own, or may."""
    return config.shared_search is not None


STAGE = Stage(
    name=SEARCH,
    run=run,
    inputs=("profile", BASELINE),
    settings=("model", "data", "shared_search", "recipe", "teacher", "seed", "device"),
    libraries=("torch", "torchvision", "torch-pruning", "numpy"),
    wanted=is_shared,
    distributed=True,
)
