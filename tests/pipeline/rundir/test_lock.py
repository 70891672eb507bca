"""The lock of a run directory, between real processes."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from atopipe.pipeline.rundir.lock import HOLDER, LOCK, in_use_by, locked
from atopipe.pipeline.system.errors import MissingError

HOLD = """
import sys, time
from pathlib import Path
from atopipe.pipeline.rundir.lock import locked
with locked(Path(sys.argv[1])):
    print("in", flush=True)
    time.sleep(60)
"""
WITH_WORKER = HOLD.replace("import sys, time", "import os, sys, time").replace(
    "    time.sleep(60)", "    time.sleep(5 if os.fork() == 0 else 60)"
)


@contextmanager
def holder(root: Path, code: str = HOLD) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen([sys.executable, "-c", code, str(root)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "in\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def test_a_second_process_is_told_who_is_there(tmp_path: Path) -> None:
    with holder(tmp_path) as first, pytest.raises(MissingError) as caught, locked(tmp_path):
        pass
    who = f"process {first.pid} on {socket.gethostname()}"
    assert str(caught.value) == f"'{tmp_path}' is in use by {who}: wait for it, or stop it"


def test_the_lock_of_a_killed_process_is_void(tmp_path: Path) -> None:
    with holder(tmp_path) as first:
        first.send_signal(signal.SIGKILL)
        first.wait()
    with locked(tmp_path) as note:
        assert note == f"process {first.pid} on {socket.gethostname()} exited uncleanly; its stale lock is ignored"
    with locked(tmp_path) as note:
        assert note is None


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_worker_that_outlives_its_killed_process_does_not_hold_the_lock(tmp_path: Path) -> None:
    with holder(tmp_path, WITH_WORKER) as first:
        first.send_signal(signal.SIGKILL)
        first.wait()
        with locked(tmp_path) as note:
            assert note is not None


def test_an_error_inside_lets_go(tmp_path: Path) -> None:
    def fail() -> None:
        with locked(tmp_path / "new"):
            assert (tmp_path / "new" / HOLDER).exists()
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert [path.name for path in (tmp_path / "new").iterdir()] == [LOCK]
    with locked(tmp_path / "new") as note:
        assert note is None


def test_a_place_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(MissingError) as caught, locked(tmp_path / "file" / "run"):
        pass
    where = tmp_path / "file" / "run"
    assert str(caught.value) == f"output '{where}' cannot be made: Not a directory: choose another --output"


HOSTILE = ("[" * 100_000, '{"pid": 1e999}', f'{{"pid": {"9" * 400}}}', "[]", "\0", '{"pid": true}')


@pytest.mark.parametrize("content", HOSTILE, ids=range(len(HOSTILE)))
def test_a_hostile_file_beside_the_lock_is_no_holder(tmp_path: Path, content: str) -> None:
    (tmp_path / HOLDER).write_text(content)
    with locked(tmp_path):
        pass


def test_a_pipe_beside_the_lock_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / HOLDER)
    with locked(tmp_path):
        pass


def test_who_is_still_there_is_told(tmp_path: Path) -> None:
    with holder(tmp_path) as first:
        assert in_use_by(tmp_path) == f"process {first.pid} on {socket.gethostname()}"
    assert in_use_by(tmp_path) is None
