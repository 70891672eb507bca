"""events.jsonl, read back: the history of a run, without attempts that were restarted."""

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

Event = Mapping[str, Any]

LONGEST = 2**20  # bytes of a line
NOT_MEASURED = frozenset({"time", "event", "stage", "epoch", "epochs", "phase"})  # of an epoch's record


def read_events(path: Path, last_bytes: int | None = None) -> list[Event]:
    """The events in order, each with its stage, which an epoch's own line does not name.

    Lines that a crash cut off, or that are none of ours, are left out. `last_bytes`: only what the end of the file has.
    """
    if not path.is_file():  # a pipe would be waited for
        return []
    events: list[Event] = []
    stage = ""
    for line in _lines(path, last_bytes):
        try:
            event = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if _is_ours(event):
            stage = event.get("stage", stage)
            events.append({**event, "stage": stage})
    return events


def _lines(path: Path, last_bytes: int | None) -> Iterator[str]:
    with path.open("rb") as file:
        if last_bytes is not None:
            file.seek(max(0, path.stat().st_size - last_bytes))
        for line in iter(lambda: file.readline(LONGEST), b""):
            yield line.decode("utf-8", errors="replace")


def _is_ours(event: object) -> bool:
    """Whether it has the fields that every event has, and an epoch its number."""
    if not isinstance(event, dict) or not isinstance(event.get("event"), str) or "time" not in event:
        return False
    return isinstance(event.get("stage", ""), str) and (event["event"] != "epoch" or type(event.get("epoch")) is int)


def current(events: Iterable[Event]) -> list[Event]:
    """Without the epochs that a later attempt at their stage went through again."""
    kept: list[Event] = []
    for event in events:
        if event["event"] == "epoch":
            kept = [other for other in kept if not _is_repeated(other, event)]
        kept.append(event)
    return kept


def measured(epoch: Event) -> dict[str, float]:
    """The numbers in the record of an epoch; `kept.flops` and its like for what is a number per cost."""
    numbers: dict[str, float] = {}
    for name, value in epoch.items():
        if name not in NOT_MEASURED:
            parts = {f"{name}.{key}": part for key, part in value.items()} if isinstance(value, dict) else {name: value}
            numbers |= {key: float(part) for key, part in parts.items() if type(part) in (int, float)}
    return numbers


def _is_repeated(earlier: Event, later: Event) -> bool:
    same = earlier["event"] == "epoch" and earlier["stage"] == later["stage"]
    return bool(same and earlier["epoch"] >= later["epoch"])
