"""One finished run of the tiny network, and copies of it for the tests that damage it."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from harness import furnish, working_in
from hypothesis import settings

from atopipe.pipeline.cli.main import main

settings.register_profile("few", max_examples=25, deadline=None, derandomize=True, database=None)
settings.register_profile("soak", max_examples=400, deadline=None, database=None)


@pytest.fixture(scope="session")
def original(made_once: Callable[[str, Callable[[Path], None]], Path]) -> Path:
    def fill(folder: Path) -> None:
        with working_in(furnish(folder)):
            assert main(["run", "--config", "config.yaml", "--output", "out", "--quiet"]) in (0, 3, 4)

    return made_once("original", fill)


@pytest.fixture
def finished_run(original: Path, tmp_path: Path) -> Path:
    """A folder of the test's own with the network, the configuration and the finished run in `out`."""
    shutil.copytree(original, tmp_path, dirs_exist_ok=True)
    return tmp_path
