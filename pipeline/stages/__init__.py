"""The stages, in order. Each is declared in its own file; adding one touches this table."""

from dataclasses import replace

from atopipe.pipeline.config.schema import Config
from atopipe.pipeline.engine.stage import Stage
from atopipe.pipeline.stages import baseline, export, quantize, report, search, shrink, train
from atopipe.pipeline.stages.bundle import stage as bundle
from atopipe.pipeline.stages.profile import stage as profile
from atopipe.pipeline.stages.validate import stage as validate

STAGES: tuple[Stage, ...] = tuple(
    module.STAGE for module in (profile, search, train, baseline, shrink, export, quantize, validate, bundle, report)
)


def stages_of(config: Config) -> tuple[Stage, ...]:
    """Those that a run of this configuration goes through, each after those of them that it reads."""
    wanted = [stage for stage in STAGES if stage.wanted(config)]
    names = {stage.name for stage in wanted}
    waiting = [
        replace(stage, inputs=tuple(n for n in stage.inputs if n in names and stage.reads(config, n)))
        for stage in wanted
    ]
    placed: dict[str, Stage] = {}
    while waiting:
        ready = next(stage for stage in waiting if placed.keys() >= set(stage.inputs))
        placed[ready.name] = ready
        waiting.remove(ready)
    return tuple(placed.values())
