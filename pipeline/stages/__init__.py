"""The stages, in order. A stage is a file; adding one touches this line."""

from atopipe.pipeline.config.schema import Config
from atopipe.pipeline.engine.stage import Stage
from atopipe.pipeline.stages import baseline, export, quantize, report, shrink, train
from atopipe.pipeline.stages.bundle import stage as bundle
from atopipe.pipeline.stages.validate import stage as validate

STAGES: tuple[Stage, ...] = (train, baseline, shrink, export, quantize, validate, bundle, report)


def stages_of(config: Config) -> tuple[Stage, ...]:
    """Those that a run of this configuration goes through."""
    return tuple(stage for stage in STAGES if stage.NAME not in config.unwanted_stages)
