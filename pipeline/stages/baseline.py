"""Train the dense network by the same recipe, seed, data order and initial weights, to compare the pruned one with.

Only where `--baseline` asks for it. Leaves weights.safetensors, history.json and execution.json.
"""

from atopipe.pipeline.config import Config
from atopipe.pipeline.networks import accuracy_of, as_function
from atopipe.pipeline.runner import Context
from atopipe.pipeline.training import checkpointed, reporter, save_training, train_batches, val_batches

NAME = "baseline"
INPUTS: tuple[str, ...] = ()
SETTINGS = ("model", "data", "recipe", "seed", "device")
LIBRARIES = ("torch", "torchvision", "numpy")


def is_wanted(config: Config) -> bool:
    """Whether the chain has this stage."""
    return config.baseline


def run(context: Context) -> dict[str, float]:
    from atopipe.ato.dense import train_dense

    workspace = context.workspace
    workspace.check_model()
    model = workspace.first_model()
    execution = workspace.execution(model)
    context.display.say("dense   the same training without pruning, for comparison")
    with checkpointed(context) as keeper:
        trained, history = train_dense(
            model.to(workspace.device),
            train_batches=train_batches(context),
            val_batches=val_batches(context),
            recipe=context.config.recipe,
            generator=workspace.generator(2),
            report=reporter(context),
            execution=execution,
            keeper=keeper,
        )
    if workspace.job.rank > 0:
        return {}
    seconds = save_training(context, trained, history, execution)
    top1 = accuracy_of(context, as_function(trained, workspace.device)).top1
    return {"accuracy.dense": top1, "time.dense_epochs_s": seconds}
