"""From the members of a sweep to trials: a run directory for each, and the command that carries it out."""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from atopipe.pipeline.config.schema import Config
from atopipe.pipeline.rundir.directory import RunDirectory
from atopipe.pipeline.rundir.external_inputs import fingerprints, lend_look
from atopipe.pipeline.rundir.layout import INPUTS
from atopipe.pipeline.stages import stages_of
from atopipe.pipeline.sweep.executors.interface import Trial
from atopipe.pipeline.sweep.plan import Member
from atopipe.pipeline.system.errors import MissingError

RUNS, LOGS = "runs", "logs"
PROGRAM = (sys.executable, "-m", "atopipe.pipeline")


@dataclass(frozen=True)
class SweepDirectory:
    """A sweep on disk: a run directory for every member in `runs/`, and what the trials say in `logs/`."""

    root: Path

    def run(self, name: str) -> Path:
        return self.root / RUNS / name

    def log(self, name: str) -> Path:
        return self.root / LOGS / f"{name}.log"

    def make_runs(self, members: Sequence[Member]) -> None:
        """A run directory for each, with its configuration, and with the digests of what all of them read."""
        seen: list[tuple[Config, Path]] = []
        for member in members:
            record = RunDirectory.create(self.run(member.name), member.config).root / INPUTS
            for config, known in seen:
                if config.data.source == member.config.data.source:
                    lend_look(known, record, only_data=_reads(config) != _reads(member.config))
                    break
            else:
                fingerprints(member.config, record)
                seen.append((member.config, record))

    def trials(self, members: Sequence[Member], options: Sequence[str] = ()) -> Iterator[Trial]:
        """What is left to do, in an order that keeps what waits behind what it waits for; `options` of every run."""
        for member in members:
            first = f"{member.leader} until {member.until}" if member.leader else None
            if member.leader == member.name and not self._has(member, str(member.until)):
                yield self._trial(member, str(first), None, ("--until", str(member.until)), options)
            if not self._has(member, None):
                reuse = ("--reuse", str(self.run(member.leader))) if member.leader not in (None, member.name) else ()
                yield self._trial(member, member.name, first, reuse, options)

    def _trial(
        self, member: Member, name: str, after: str | None, special: Sequence[str], options: Sequence[str]
    ) -> Trial:
        root = self.run(member.name)
        settings = ("run", "--config", str(root / "config.yaml"), "--output", str(root))
        return Trial(name, (*PROGRAM, *settings, *special, *options), root, self.log(member.name), after)

    def _has(self, member: Member, until: str | None) -> bool:
        """Whether the member's stages, or those until that one, are complete and unchanged."""
        run = RunDirectory(self.run(member.name), member.config)
        stages = stages_of(member.config)
        names = [stage.name for stage in stages]
        wanted = stages if until is None else stages[: names.index(until) + 1]
        try:
            return all(run.stages.is_current(stage) for stage in reversed(wanted))
        except MissingError:  # a damaged result: the run says so
            return False


def _reads(config: Config) -> object:
    return config.slice_for(("model", "data", "teacher", "latency_table"))
