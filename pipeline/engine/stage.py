"""A stage, and what it works with."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from atopipe.pipeline.config.schema import Config
from atopipe.pipeline.engine.workspace import Workspace
from atopipe.pipeline.report.terminal import Display
from atopipe.pipeline.rundir.directory import RunDirectory
from atopipe.pipeline.rundir.layout import StageSpec


@dataclass(frozen=True)
class Context:
    """What a stage works with: it reads through `input`, writes into `folder`, and shows through `display`."""

    stage: "Stage"
    run: RunDirectory
    folder: Path
    workspace: Workspace
    display: Display

    @property
    def config(self) -> Config:
        return self.run.config

    def input(self, stage: str, name: str) -> Path:
        """A file another stage wrote, checked against its digest."""
        return self.run.artifact(stage, name)


class Stage(StageSpec, Protocol):
    """A module of `stages/`: constants, and one function that writes files and returns flat metrics."""

    def run(self, context: Context) -> Mapping[str, float]: ...
