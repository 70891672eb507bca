"""The network that the pruned one learns from: the run's own dense network, or trained weights of the same model."""

from pathlib import Path
from typing import TYPE_CHECKING

from atopipe.pipeline.config.schema import BASELINE, Config
from atopipe.pipeline.engine.process_group import broadcast_bytes
from atopipe.pipeline.engine.stage import Context
from atopipe.pipeline.engine.start import new_model

if TYPE_CHECKING:
    from torch import nn

    from atopipe.ato.execution import Execution
    from atopipe.ato.training.objective import Objective


def objective(context: Context, execution: "Execution") -> "Objective | None":
    """Cross-entropy and distillation from the configuration's teacher; None without one."""
    from atopipe.ato.training.objective import CrossEntropy, Distillation

    config, workspace = context.config, context.workspace
    if config.teacher is None:
        return None
    teacher = _own_baseline(context) if config.teacher == BASELINE else load_teacher(config, len(workspace.data.labels))
    settings = config.recipe.distillation
    context.display.say(
        f"teacher {config.teacher}: {settings.weight:g} of the loss, temperature {settings.temperature:g}"
    )
    labels = CrossEntropy(config.recipe.weights.label_smoothing)
    teacher = teacher.to(workspace.device)
    return Distillation(labels, teacher, settings.weight, settings.temperature, execution)


def load_teacher(config: Config, classes: int) -> "nn.Module":
    """The configuration's network with the weights of a file; UsageError where they are for other classes."""
    from atopipe.pipeline.models.pretrained import load_weights

    file, model = str(config.teacher), new_model(config, classes)
    load_weights(
        model,
        Path(file),
        classes,
        build=lambda count: new_model(config, count),
        keep_head=True,
        who=f"--teacher '{file}'",
    )
    return model


def _own_baseline(context: Context) -> "nn.Module":
    """What stage baseline left on the first process, in all of them."""
    from safetensors.torch import load

    workspace, first = context.workspace, context.workspace.job.rank == 0
    content = context.input("baseline", "weights.safetensors").read_bytes() if first else None
    if workspace.job.size > 1:
        content = broadcast_bytes(content)
    model = workspace.new_model()
    model.load_state_dict(load(content or b""))
    return model
