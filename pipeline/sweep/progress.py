"""What has become of every run of a sweep, read from its directory: so it can be asked from anywhere."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from atopipe.pipeline.rundir.events import read_events
from atopipe.pipeline.rundir.lock import is_held
from atopipe.pipeline.sweep.trials import SweepDirectory

TAIL = 16 * 1024  # bytes at the end of events.jsonl that tell how far a run is
LAST_STAGE = "stages/report/result.json"
METRICS = "metrics.json"


@dataclass(frozen=True)
class Progress:
    """One run: `state` is waiting, running, failed or complete; `detail` says how far it is or what went wrong."""

    name: str
    state: str
    detail: str


def progress_of(sweep: SweepDirectory, names: Sequence[str]) -> Iterator[Progress]:
    """The runs of these names, in their order."""
    for name in names:
        yield Progress(name, *_state(sweep.run(name)))


def is_complete(root: Path) -> bool:
    """Whether the last stage of a run has left its result, current or not."""
    return (root / LAST_STAGE).exists()


def metrics_of(root: Path) -> dict[str, float]:
    """The published figures of a run; none where they cannot be read."""
    try:
        found = json.loads((root / METRICS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _state(root: Path) -> tuple[str, str]:
    events = last_events(root)
    if is_held(root):
        return "running", _how_far(events)
    if is_complete(root):
        top1 = metrics_of(root).get("accuracy.onnx")
        return "complete", "" if top1 is None else f"top-1 {top1:.4f}"
    failure = next((event for event in reversed(events) if event["event"].startswith("stage ")), None)
    if failure is not None and failure["event"] == "stage failed" and "KeyboardInterrupt" not in failure["error"]:
        return "failed", f"stage {failure['stage']}: {failure['error']}"
    return "waiting", _how_far(events)


def _how_far(events: Sequence[Mapping[str, Any]]) -> str:
    last = events[-1] if events else {}
    if last.get("event") == "epoch":
        return f"epoch {last['epoch']} of {last['epochs']}, {last['phase']}, top-1 {last['val_accuracy']:.4f}"
    return f"stage {last['stage']}" if last.get("stage") else ""


def last_events(root: Path) -> list[Mapping[str, Any]]:
    """The end of a run's events.jsonl, however long it is."""
    path = root / "events.jsonl"
    if not path.exists():
        return []
    return read_events(path, last_bytes=TAIL)
