"""A run that is killed at any moment ends, when it is started again, in the bytes of one that was not."""

import signal
import time
from pathlib import Path

import pytest
from harness import digests, finish, furnish, kill_after, problems, start

FRACTIONS = (0.55, 0.8)  # of an uninterrupted run: in training, and behind it


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return furnish(tmp_path_factory.mktemp("kills"))


@pytest.fixture(scope="module")
def whole(place: Path) -> float:
    """The seconds of an uninterrupted run, which is left in `whole`."""
    return finish(place, "whole")


@pytest.mark.slow
@pytest.mark.parametrize("fraction", FRACTIONS)
def test_a_killed_run_that_is_started_again_is_as_if_it_had_not_been(
    place: Path, whole: float, fraction: float
) -> None:
    output = f"killed{fraction}"
    kill = kill_after(place, output, fraction * whole)
    assert not kill.finished
    assert kill.stage
    finish(place, output)
    assert digests(place / output) == digests(place / "whole")
    assert problems(place / output) == []


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["export", "bundle"])
def test_a_stage_that_is_told_to_end_does_so_and_is_done_again(place: Path, whole: float, stage: str) -> None:
    output = f"told-{stage}"
    process = start(place, output)
    while f'"stage started", "stage": "{stage}"' not in _said(place / output):
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    begun = time.monotonic()
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert time.monotonic() - begun < 10
    assert said.splitlines()[-1] == (
        f"atopipe: interrupted in stage {stage}: what is complete in '{output}' stays usable, run it again to go on"
    )
    assert not list((place / output / "stages").glob(".*"))
    finish(place, output)
    assert digests(place / output) == digests(place / "whole")


def _said(run: Path) -> str:
    return (run / "events.jsonl").read_text() if (run / "events.jsonl").exists() else ""
