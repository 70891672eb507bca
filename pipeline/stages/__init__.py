"""The stages, in order. A stage is a file; adding one touches this line."""

from atopipe.pipeline.runner import Stage
from atopipe.pipeline.stages import export, report, shrink, train, validate

STAGES: tuple[Stage, ...] = (train, shrink, export, validate, report)
