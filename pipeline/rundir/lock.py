"""One process at a time in a run directory.

The operating system holds the lock and lets go of it when its process dies, however it does. Beside it stands who the
holder is, so that a second process can say so.
"""

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from atopipe.pipeline.system.errors import MissingError
from atopipe.pipeline.system.failures import explain
from atopipe.pipeline.system.files import DamagedError, read_ordinary, write_json

LOCK, HOLDER = ".lock", ".lock.json"
LAST_BREATH_S = 10.0  # in which the workers of a killed process let go of what they have of it
LONGEST = 10_000  # bytes of the holder's file
LOCK_FILES = frozenset({LOCK, HOLDER})


@contextmanager
def locked(root: Path) -> Iterator[str | None]:
    """While active, no other process can enter the run in `root`, which is made if it is not there.

    Gives a sentence if the last holder died in the middle. Raises MissingError that names the holder where there is
    one, or where the folder cannot be written.
    """
    from filelock import FileLock, Timeout

    try:
        root.mkdir(parents=True, exist_ok=True)
        lock = FileLock(root / LOCK, timeout=LAST_BREATH_S if _is_gone(_holder(root)) else 0)
        lock.acquire()
        before = _holder(root)
    except Timeout:
        raise MissingError(f"'{root}' is in use by {_named(_holder(root))}: wait for it, or stop it") from None
    except (OSError, NotImplementedError) as error:  # the latter where the file system knows no locks
        known = explain(error, root)
        reason = error.strerror if isinstance(error, OSError) else "no locks on this file system"
        other = f"output '{root}' cannot be made: {reason}: choose another --output"
        raise MissingError(known.message if known else other) from None
    try:
        write_json(root / HOLDER, {"pid": os.getpid(), "host": socket.gethostname()})
        yield f"{_named(before)} exited uncleanly; its stale lock is ignored" if before else None
    finally:
        (root / HOLDER).unlink(missing_ok=True)
        lock.release()  # the file stays: who waits for it must not be left with one that is gone


def in_use_by(root: Path) -> str | None:
    """Who works in the run in `root`, as far as it says so and is a process of this machine that lives."""
    import psutil

    holder = _holder(root)
    pid, here = holder.get("pid"), holder.get("host") == socket.gethostname()
    lives = isinstance(pid, int) and 1 < pid < 2**31 and pid != os.getpid() and psutil.pid_exists(pid)
    return _named(holder) if here and lives else None


def _holder(root: Path) -> dict[str, object]:
    """Who wrote the file beside the lock; empty where nobody has."""
    try:
        holder = json.loads(read_ordinary(root / HOLDER, LONGEST))
    except (OSError, ValueError, RecursionError, DamagedError):
        return {}
    return holder if isinstance(holder, dict) else {}


def _is_gone(holder: dict[str, object]) -> bool:
    """Whether the holder was a process of this machine that is no more."""
    import psutil

    pid = holder.get("pid")
    if not isinstance(pid, int) or not 1 < pid < 2**31:
        return False
    return holder.get("host") == socket.gethostname() and not psutil.pid_exists(pid)


def _named(holder: dict[str, object]) -> str:
    return f"process {holder.get('pid', '?')} on {holder.get('host', 'an unknown machine')}"


def is_held(root: Path) -> bool:
    """Whether a process works in the run in `root`, as far as the file beside the lock tells; the lock is left alone.

    A process of another machine counts as one that is there.
    """
    holder = _holder(root)
    return bool(holder) and not _is_gone(holder)
