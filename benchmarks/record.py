"""Measurements in files: one JSON object per line, each with what it was measured on."""

import json
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from atopipe.pipeline.system.machine import hardware, library_versions

RESULTS = Path(__file__).parent / "results"
LIBRARIES = ("atopipe", "torch", "torchvision", "torch-pruning", "onnxruntime", "numpy")


def environment() -> dict[str, Any]:
    """Hardware, versions and commit of a measurement."""
    return {**hardware(), **library_versions(LIBRARIES), "commit": _commit()}


def append(name: str, row: Mapping[str, Any]) -> None:
    """Add a measurement to `results/<name>.jsonl`; several processes may."""
    RESULTS.mkdir(exist_ok=True)
    with (RESULTS / f"{name}.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def rows(name: str) -> Iterator[dict[str, Any]]:
    """All measurements of `results/<name>.jsonl`."""
    file = RESULTS / f"{name}.jsonl"
    if file.exists():
        yield from map(json.loads, file.read_text(encoding="utf-8").splitlines())


def _commit() -> str:
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    return subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip() or "unknown"
