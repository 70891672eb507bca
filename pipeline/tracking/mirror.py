"""Mirrors what happens to a run in trackers: parameters, numbers per epoch, final metrics, files."""

import importlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from atopipe.pipeline.rundir.directory import RunDirectory
from atopipe.pipeline.rundir.events import Event, current, measured, read_events
from atopipe.pipeline.system.errors import GateFailed, Inconclusive, Interrupted, MissingError
from atopipe.pipeline.system.text import first_line

NEEDS: Mapping[str, tuple[str, ...]] = {"tensorboard": ("tensorboard",), "mlflow": ("mlflow", "sqlalchemy", "alembic")}
"""Tracker -> the modules it needs, which its extra installs."""

WITH_PARENTS = ("mlflow",)
REPORTS = ("summary.md", "report.html", "junit.xml", "bundle.zip")
FILES = ("config.yaml", "metrics.json", "manifest.json", "events.jsonl", *REPORTS)
SETTLED = (GateFailed, Inconclusive)  # valid results, though not what was hoped for


class Tracker(Protocol):
    """Where numbers go; the same value twice changes nothing."""

    def parameters(self, values: Mapping[str, str]) -> None: ...
    def epoch(self, stage: str, epoch: int, values: Mapping[str, float], seconds: float) -> None:
        """`seconds` since 1970, when it happened."""

    def metrics(self, values: Mapping[str, float], seconds: float) -> None: ...
    def close(self, outcome: str, files: Sequence[Path]) -> None:
        """`outcome`: finished, failed or interrupted."""


class Mirror:
    """Passes events on to one tracker, until that fails: a run does not end because its mirror breaks."""

    def __init__(self, name: str, tracker: Tracker, say: Callable[[str], None]) -> None:
        self.name, self.tracker, self.say = name, tracker, say
        self.stage, self.now, self.is_broken = "", 0.0, False
        self.told: dict[str, float] = {}

    def follow(self, event: Event) -> None:
        """One event of events.jsonl."""
        self.stage, self.now = event.get("stage", self.stage), event["time"]
        if event["event"] == "epoch":
            self._try(self.tracker.epoch, self.stage, event["epoch"], measured(event), self.now)
        elif event["event"] == "stage complete":
            self._metrics(event["metrics"])

    def begin(self, parameters: Mapping[str, str], past: Sequence[Event]) -> None:
        """Parameters, and what happened before this process."""
        self._try(self.tracker.parameters, parameters)
        for event in past:
            self.follow(event)

    def end(self, outcome: str, root: Path, files: Sequence[str] = FILES) -> None:
        """What came out in the directory."""
        self._try(lambda: self._metrics(_metrics_in(root)))
        self._try(self.tracker.close, outcome, [root / name for name in files if (root / name).exists()])

    def _metrics(self, values: Mapping[str, float]) -> None:
        """Values that are new to the tracker."""
        fresh = {name: value for name, value in values.items() if self.told.get(name) != value}
        self.told |= fresh
        self._try(self.tracker.metrics, fresh, self.now)

    def _try(self, act: Callable[..., None], *arguments: Any) -> None:
        if self.is_broken:
            return
        try:
            act(*arguments)
        except Exception as error:  # whatever a library, its database or its server may raise
            self.is_broken = True
            self.say(f"{self.name} has failed and is switched off ({first_line(error)}); events.jsonl continues")


@contextmanager
def mirrored(run: RunDirectory, names: Sequence[str], *, force: bool, say: Callable[[str], None]) -> Iterator[None]:
    """While active, what happens to `run` is mirrored in the trackers of these names.

    `force`: training starts from scratch, without the earlier history. Raises MissingError where a
    package is missing.
    """
    for name in names:
        require_installed(name)
    mirrors = [Mirror(name, _tracker(name, run.root, force=force), say) for name in names]
    past = [] if force or not names else current(read_events(run.root / "events.jsonl"))
    for mirror in mirrors:
        mirror.begin(dict(_flat(run.config.resolved())), past)
        run.record.followers.append(mirror.follow)
    outcome = "failed"
    try:
        yield
        outcome = "finished"
    except SETTLED:
        outcome = "finished"
        raise
    except (Interrupted, KeyboardInterrupt):
        outcome = "interrupted"
        raise
    finally:
        for mirror in mirrors:
            run.record.followers.remove(mirror.follow)
            mirror.end(outcome, run.root)


@contextmanager
def parent_tracked(
    root: Path, names: Sequence[str], parameters: Mapping[str, str], files: Sequence[str], say: Callable[[str], None]
) -> Iterator[None]:
    """While active, the sweep in `root` has a run of its own in those trackers that know parents and children.

    Its `files` are given to it at the end. TensorBoard has no such thing: it shows all runs below a folder.
    """
    mirrors = [Mirror(name, _tracker(name, root, force=False), say) for name in names if name in WITH_PARENTS]
    for mirror in mirrors:
        mirror.begin(parameters, ())
    outcome = "interrupted"
    try:
        yield
        outcome = "finished"
    finally:
        for mirror in mirrors:
            mirror.end(outcome, root, files)


def require_installed(name: str) -> None:
    """MissingError, with the line that installs it, where a tracker's package is missing."""
    missing = [module for module in NEEDS[name] if find_spec(module) is None]
    if missing:
        raise MissingError(f"--{name} needs the package '{missing[0]}': pip install 'atopipe[{name}]'")


def _tracker(name: str, root: Path, *, force: bool) -> Tracker:
    module = importlib.import_module(f"atopipe.pipeline.tracking.{name}")
    try:
        tracker: Tracker = module.open_tracker(root, force=force)
    except Exception as error:  # as above
        raise MissingError(
            f"--{name} cannot be used here ({first_line(error)}): repair it, or omit the option"
        ) from error
    return tracker


def _metrics_in(root: Path) -> dict[str, float]:
    """The published metrics, if there are any."""
    path = root / "metrics.json"
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else {}


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """{"a": {"b": 1}} -> ("a.b", "1"); what is not set is left out."""
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        elif value not in (None, [], ()):
            yield f"{prefix}{name}", str(value)
