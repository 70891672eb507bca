"""The stages, in order. A stage is a file; adding one touches this line."""

from atopipe.pipeline.config import Config
from atopipe.pipeline.runner import Stage
from atopipe.pipeline.stages import baseline, bundle, export, quantize, report, shrink, train, validate

STAGES: tuple[Stage, ...] = (train, baseline, shrink, export, quantize, validate, bundle, report)


def stages_of(config: Config) -> tuple[Stage, ...]:
    """Those that a run of this configuration goes through."""
    wanted = {baseline.NAME: baseline.is_wanted(config), quantize.NAME: quantize.is_wanted(config)}
    return tuple(stage for stage in STAGES if wanted.get(stage.NAME, True))
