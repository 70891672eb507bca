"""Train the dense network by the same recipe, seed, data order and initial weights, to compare the pruned one with.

Only where `--baseline` asks for it. Leaves weights.safetensors, history.json and execution.json.
"""

from atopipe.pipeline.engine.networks import accuracy_of
from atopipe.pipeline.engine.stage import Context, Stage
from atopipe.pipeline.engine.training import save_training, training_session
from atopipe.pipeline.engine.workspace import Stream
from atopipe.pipeline.models.inference import as_function


def run(context: Context) -> dict[str, float]:
    from atopipe.ato.training.dense import train_dense

    workspace = context.workspace
    workspace.check_model()
    model = workspace.first_model()
    execution, head = workspace.execution(model), workspace.head(model)
    context.display.say("dense   the same training without pruning, for comparison")
    with training_session(context) as (batches, checkpointer, report):
        trained, history = train_dense(
            model.to(workspace.device),
            train_batches=batches.train,
            val_batches=batches.val,
            recipe=context.config.recipe,
            generator=workspace.generator(Stream.TRAINING),
            report=report,
            execution=execution,
            head=head,
            calibration=workspace.calibration(execution),
            checkpointer=checkpointer,
        )
    if workspace.job.rank > 0:
        return {}
    seconds = save_training(context, trained, history, execution)
    top1 = accuracy_of(context, as_function(trained, workspace.device)).top1
    return {"accuracy.dense": top1, "time.dense_epochs_s": seconds}


STAGE = Stage(
    name="baseline",
    run=run,
    settings=("model", "data", "recipe", "seed", "device"),
    libraries=("torch", "torchvision", "numpy"),
    wanted=lambda config: config.baseline,
    distributed=True,
)
