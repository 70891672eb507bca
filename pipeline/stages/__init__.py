"""The stages, in order. A stage is a file; adding one touches this line."""

from atopipe.pipeline.config import Config
from atopipe.pipeline.runner import Stage
from atopipe.pipeline.stages import baseline, bundle, export, report, shrink, train, validate

STAGES: tuple[Stage, ...] = (train, baseline, shrink, export, validate, bundle, report)


def stages_of(config: Config) -> tuple[Stage, ...]:
    """Those that a run of this configuration goes through."""
    return tuple(stage for stage in STAGES if stage is not baseline or baseline.is_wanted(config))
