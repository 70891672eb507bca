"""Where standard output goes: a full device, a reader that has gone, a closed stream, a terminal of ASCII only."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from atopipe.pipeline.report.terminal import PlainDisplay

ATOPIPE = [sys.executable, "-m", "atopipe.pipeline"]
FULL = Path("/dev/full")
HAS_FULL = pytest.mark.skipif(not FULL.exists(), reason="there is no /dev/full")


def called(*argv: str, folder: Path | None = None, **streams: object) -> "subprocess.CompletedProcess[str]":
    settings: dict[str, object] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **streams}
    return subprocess.run([*ATOPIPE, *argv], cwd=folder, text=True, check=False, timeout=100, **settings)  # type: ignore[call-overload, no-any-return]


@HAS_FULL
@pytest.mark.parametrize(
    "command", [["--help"], ["--version"], ["bench", "--help"], ["inspect", "--model", "resnet20"]]
)
def test_output_that_cannot_be_written_is_named(command: list[str]) -> None:
    with FULL.open("w") as full:
        done = called(*command, stdout=full)
    said = "standard output cannot be written (No space left on device): send it where there is space"
    assert (done.returncode, done.stderr) == (5, f"atopipe: {said}\n")


@HAS_FULL
def test_a_mistake_keeps_its_exit_code_where_it_cannot_be_told() -> None:
    with FULL.open("w") as full:
        assert called("runn", stderr=full).returncode == 2


@pytest.fixture
def gone() -> Iterator[int]:
    """The writing end of a pipe that nobody reads."""
    reader, writer = os.pipe()
    os.close(reader)
    yield writer
    os.close(writer)


@pytest.mark.parametrize("command", [["--help"], ["--version"]])
def test_a_reader_that_has_seen_enough_is_no_error(command: list[str], gone: int) -> None:
    done = called(*command, stdout=gone)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_run_goes_on_without_a_reader(gone: int) -> None:
    with os.fdopen(os.dup(gone), "w") as stream:
        display = PlainDisplay(stream)
        for line in ("one", "two", "three"):
            display.say(line)


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_closed_streams_are_no_error(closed: str) -> None:
    code = "import os; [os.fstat(n) for n in (1, 2)]; import sys; sys.stdout.write(''); sys.stderr.write('')"
    program = f"from atopipe.pipeline.cli.main import main; c = main(['--version']); {code}; raise SystemExit(c)"
    done = subprocess.run(["/bin/sh", "-c", f'exec "$0" -c "$1" {closed}', sys.executable, program], check=False)
    assert done.returncode == 0


ASCII = ({"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C"})


@pytest.mark.parametrize("setting", ASCII, ids=["encoding", "locale"])
def test_what_a_terminal_has_no_characters_for_is_no_error(setting: dict[str, str], tmp_path: Path) -> None:
    environment = {**os.environ, **setting}
    refused = called("r\u00fcn", env=environment)
    assert refused.returncode == 2
    assert refused.stderr.startswith("atopipe: unknown command 'r")
    assert refused.stderr.count("\n") == 1
    made = called("init", "--dvc", "--config", "l\u00e4ufe.yaml", folder=tmp_path, env=environment)
    assert (made.returncode, made.stderr) == (0, "")
    assert (tmp_path / "l\u00e4ufe.yaml").exists()


def test_tables_are_drawn_on_a_terminal_of_ascii_only() -> None:
    code = (
        "import sys\n"
        "from atopipe.pipeline.cli.main import main\n"
        "main(['--version'])\n"  # prepares the streams
        "from rich.console import Console\n"
        "from rich.table import Table\n"
        "from rich import box\n"
        "table = Table('a', box=box.SIMPLE_HEAD)\n"
        "table.add_row('\u00fc')\n"
        "Console().print(table)\n"
    )
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False, env=environment)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.isascii()
    assert b"\\xfc" in done.stdout
