"""The run directory: the interface between the stages, and the record of what happened."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import yaml

from atopipe.pipeline.config.load import parse_config, read_yaml
from atopipe.pipeline.config.schema import Config
from atopipe.pipeline.rundir.external_inputs import fingerprints
from atopipe.pipeline.rundir.layout import INPUTS
from atopipe.pipeline.rundir.lock import LOCK_FILES
from atopipe.pipeline.rundir.record import RunRecord
from atopipe.pipeline.rundir.store import StageStore
from atopipe.pipeline.system.errors import MissingError, UsageError
from atopipe.pipeline.system.failures import explain
from atopipe.pipeline.system.files import write_text

Look = Callable[[Config, Path], dict[str, str]]


class RunDirectory:
    """One run on disk: its `stages` and its `record`.

    Make one with `create` (a new run, or the same one again) or `open` (an existing run). `look` gives the digests of
    what the run reads from outside, as `fingerprints` does.
    """

    def __init__(self, root: Path, config: Config, look: Look = fingerprints) -> None:
        self.root, self.config = root, config
        self.stages = StageStore(root, config, partial(look, config, root / INPUTS))
        self.record = RunRecord(root, config, self.stages)

    @classmethod
    def check(cls, root: Path, config: Config, *, force: bool = False) -> None:
        """UsageError where `root` holds something else than the run `config` (`force` allows another run)."""
        if root.exists() and not root.is_dir():
            raise UsageError(f"output '{root}' is a file: choose another --output")
        if (root / "config.yaml").exists():
            if not force and cls.holds_another(root, config):
                remedy = "choose another --output, --update to change its settings, or --force to replace it"
                raise UsageError(f"output '{root}' belongs to another configuration: {remedy}")
        elif root.exists() and any(entry.name not in LOCK_FILES for entry in root.iterdir()):
            raise UsageError(f"output '{root}' is not empty and not a run of atopipe: choose another --output")

    @classmethod
    def holds_another(cls, root: Path, config: Config) -> bool:
        """Whether stages in `root` have been run with settings that make it another run than `config`."""
        return _holds_work(root) and cls.open(root).config.identity() != config.identity()

    @classmethod
    def create(cls, root: Path, config: Config, *, force: bool = False) -> "RunDirectory":
        """The run `config` in `root`, a new one or the same again, where `check` allows it."""
        cls.check(root, config, force=force)
        try:
            root.mkdir(parents=True, exist_ok=True)
            write_text(root / "config.yaml", yaml.safe_dump(config.resolved(), sort_keys=False))
        except OSError as error:
            known = explain(error, root)
            other = f"output '{root}' cannot be made: {error.strerror}: choose another --output"
            raise MissingError(known.message if known else other) from None
        return cls(root, config)

    @classmethod
    def open(cls, root: Path) -> "RunDirectory":
        """The run in `root`; UsageError where there is none, or one whose settings this version cannot read."""
        if not (root / "config.yaml").exists():
            raise UsageError(
                f"'{root}' is not a run of atopipe: give the folder that 'atopipe run' or 'atopipe train' wrote"
            )
        try:
            return cls(root, parse_config(read_yaml(root / "config.yaml")))
        except UsageError as error:
            raise UsageError(
                f"this version of atopipe cannot read the settings of '{root}' ({error}): "
                "use the version that wrote them, or replace the run with 'atopipe run --force'"
            ) from None


def scratch_directory(root: Path, config: Config) -> RunDirectory:
    """The directory of a process that delivers nothing: the images are not read once more for their digests."""
    RunDirectory.create(root, config)
    return RunDirectory(root, config, lambda config, record: {})


def _holds_work(root: Path) -> bool:
    """True if a stage of the run in `root` has completed or has been cut off in the middle."""
    return (root / "stages").is_dir() and any((root / "stages").iterdir())
