"""How much memory there is, asked before it is taken: a process that takes too much is killed without a word."""

from pathlib import Path

import psutil

from atopipe.pipeline.distributed import this_job
from atopipe.pipeline.errors import MissingError

CGROUP = Path("/sys/fs/cgroup")


def available_memory() -> int:
    """Bytes this process may still take: the machine's, or what its container's limit leaves if that is less.

    The processes of a job have equal shares.
    """
    free = int(psutil.virtual_memory().available)
    limit, used = (_cgroup_number(name) for name in ("memory.max", "memory.current"))
    left = free if limit is None else max(0, min(free, limit - (used or 0) + _droppable()))
    return left // this_job().local_size


def require_memory(what: str, needed: int, remedy: str) -> None:
    """Raises MissingError, in a sentence that starts with `what`, where fewer than `needed` bytes are available."""
    free = available_memory()
    if needed > free:
        raise MissingError(f"{what} need {needed / 1e9:.1f} GB of memory and {free / 1e9:.1f} GB are free: {remedy}")


def _cgroup_number(name: str) -> int | None:
    path = CGROUP / name
    text = path.read_text().strip() if path.is_file() else "max"
    return int(text) if text.isdecimal() else None


def _droppable() -> int:
    """Bytes of files that the container holds in memory only for speed."""
    path = CGROUP / "memory.stat"
    lines = path.read_text().splitlines() if path.is_file() else []
    return sum(int(line.split()[1]) for line in lines if line.startswith("inactive_file "))
