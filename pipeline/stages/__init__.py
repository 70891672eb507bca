"""The stages, in order. Each is declared in its own file; adding one touches this table."""

from dataclasses import replace

from atopipe.pipeline.config.schema import Config
from atopipe.pipeline.engine.stage import Stage
from atopipe.pipeline.stages import baseline, export, quantize, report, shrink, train
from atopipe.pipeline.stages.bundle import stage as bundle
from atopipe.pipeline.stages.profile import stage as profile
from atopipe.pipeline.stages.validate import stage as validate

STAGES: tuple[Stage, ...] = tuple(
    module.STAGE for module in (profile, train, baseline, shrink, export, quantize, validate, bundle, report)
)


def stages_of(config: Config) -> tuple[Stage, ...]:
    """Those that a run of this configuration goes through; each reads only what is among them."""
    wanted = [stage for stage in STAGES if stage.wanted(config)]
    names = {stage.name for stage in wanted}
    return tuple(replace(stage, inputs=tuple(n for n in stage.inputs if n in names)) for stage in wanted)
