"""Which skips are in order, which files come first, and folders that all workers of a session share."""

import re
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock

MadeOnce = Callable[[str, Callable[[Path], None]], Path]

NAMED_SKIPS = (
    r"no (Chromium or Chrome|C\+\+ compiler|Node\.js) is installed",
    "mounting a small disk takes rights that this process has not",
    "this ONNX Runtime knows no (TensorRT|CUDA)",
    r"(CUDA is usable here|has a GPU)",
    r"only \d+ ?% of the (timed )?runs .*",  # of a latency test, on a machine that is too busy
    "this system has no (fork|processor affinity)",
    "signals",
    "there is no /dev/full",
    "ray is (not )?installed",
)
"""Reasons (regular expressions) for which a test may be skipped with --named-skips-only, as in .ci/run."""


def pytest_addoption(parser: pytest.Parser) -> None:
    words = "fail if a test is skipped for a reason that NAMED_SKIPS of tests/conftest.py does not list"
    parser.addoption("--named-skips-only", action="store_true", help=words)


def unnamed(reasons: list[str]) -> list[str]:
    return [reason for reason in reasons if not any(re.fullmatch(named, reason) for named in NAMED_SKIPS)]


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if not session.config.getoption("--named-skips-only") or reporter is None:
        return
    reports = [report for report in reporter.stats.get("skipped", []) if isinstance(report.longrepr, tuple)]
    found = unnamed([str(report.longrepr[2]).removeprefix("Skipped: ") for report in reports])
    if found:
        reporter.write_line(f"skipped without being named in tests/conftest.py: {sorted(set(found))}", red=True)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests first, so that no worker begins one when the other has nothing left to do."""
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[item.path])


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> MadeOnce:
    """Gives the folder of a name, filled by the first worker of the session that asks for it; nobody may change it."""
    root = tmp_path_factory.getbasetemp()
    shared = root if worker_id == "master" else root.parent

    def made(name: str, fill: Callable[[Path], None]) -> Path:
        folder, done = shared / f"once-{name}", shared / f"once-{name}.done"
        with FileLock(shared / f"once-{name}.lock"):
            if not done.exists():
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir()
                fill(folder)
                done.touch()
        return folder

    return made
