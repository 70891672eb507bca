"""The network that the pruned one learns from: the dense one of the run, or this model with trained weights."""

from typing import TYPE_CHECKING

from atopipe.pipeline.config.schema import BASELINE, Config
from atopipe.pipeline.engine.process_group import broadcast_bytes
from atopipe.pipeline.engine.stage import Context
from atopipe.pipeline.engine.start import load_source, new_model
from atopipe.pipeline.models.weights.source import WeightsSource
from atopipe.pipeline.system.errors import UsageError

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
    source, classes = teacher_weights(config), len(workspace.data.labels)
    teacher = load_teacher(config, source, classes) if source else _own_baseline(context)
    settings = config.recipe.distillation
    context.display.say(
        f"teacher {config.teacher}: {settings.weight:g} of the loss, temperature {settings.temperature:g}"
    )
    labels = CrossEntropy(config.recipe.weights.label_smoothing)
    teacher = teacher.to(workspace.device)
    return Distillation(labels, teacher, settings.weight, settings.temperature, execution)


def teacher_weights(config: Config) -> WeightsSource | None:
    """The weights that teach, their file at hand; None without a teacher, or where the run's own network teaches."""
    from atopipe.pipeline.models.weights.find import fetch_weights

    if config.teacher in (None, BASELINE):
        return None
    return fetch_weights(config.model.name, str(config.teacher), config.model.args, option="--teacher")


def load_teacher(config: Config, source: WeightsSource, classes: int) -> "nn.Module":
    """The configuration's network with these weights; UsageError where they are for other classes."""
    from atopipe.pipeline.models.pretrained import HeadError

    model = new_model(config, classes)
    try:
        load_source(config, source, model, classes, keep_head=True)
    except HeadError as error:
        remedy = "give weights trained on these classes, or --teacher baseline"
        raise UsageError(f"--teacher '{config.teacher}' {error.found}: {remedy}") from error
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
