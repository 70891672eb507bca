"""A stage, and what it works with."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

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
        return self.run.stages.artifact(stage, name)


def always(config: Config) -> bool:
    """Every run goes through the stage."""
    return True


def reads_all(config: Config, stage: str) -> bool:
    """All inputs are read."""
    return True


@dataclass(frozen=True, kw_only=True)
class Stage(StageSpec):
    """A step of a run: everything there is to say of it, in its own file.

    `run` writes files and returns flat metrics; `wanted`: whether a run of that configuration goes through it;
    `reads`: whether it reads that one of its `inputs` in a run of that configuration;
    `distributed`: whether every process of a job takes part in it, or the first one alone; `remedy`: the option that
    makes a run want it, if not every run does.
    """

    run: Callable[[Context], Mapping[str, float]]
    wanted: Callable[[Config], bool] = always
    reads: Callable[[Config, str], bool] = reads_all
    distributed: bool = False
    remedy: str = ""
