"""A run that is killed at any moment ends, when it is started again, in the bytes of one that was not."""

import shutil
import signal
from pathlib import Path

import pytest
from harness import digests, finish, furnish, problems, start, wait_for


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return furnish(tmp_path_factory.mktemp("kills"))


@pytest.fixture(scope="module")
def whole(place: Path) -> float:
    """The seconds of an uninterrupted run, which is left in `whole`."""
    return finish(place, "whole")


def trained(place: Path, output: str) -> None:
    """A run in `output` that has come as far as its training."""
    shutil.copytree(place / "whole", place / output, ignore=shutil.ignore_patterns("events.jsonl", "bundle*"))
    for stage in (place / output / "stages").iterdir():
        if stage.name not in ("train", "shrink"):
            shutil.rmtree(stage)


@pytest.mark.slow
@pytest.mark.parametrize(("event", "stage"), [("checkpoint", ""), ("stage started", "validate")])
def test_a_killed_run_that_is_started_again_is_as_if_it_had_not_been(
    place: Path, whole: float, event: str, stage: str
) -> None:
    output = f"killed-{stage or event}"
    if stage:
        trained(place, output)
    process = start(place, output)
    wait_for(process, place / output, event, **({"stage": stage} if stage else {}))
    process.kill()
    process.communicate()
    finish(place, output)
    assert digests(place / output) == digests(place / "whole")
    assert problems(place / output) == []


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["export", "bundle"])
def test_a_stage_that_is_told_to_end_does_so_and_is_done_again(place: Path, whole: float, stage: str) -> None:
    output = f"told-{stage}"
    trained(place, output)
    process = start(place, output)
    wait_for(process, place / output, "stage started", stage=stage)
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=60)  # it ends soon, however busy the machine is
    assert process.returncode == 130
    assert said.splitlines()[-1] == (
        f"atopipe: interrupted in stage {stage}: complete stages in '{output}' stay usable, run again to resume"
    )
    assert not list((place / output / "stages").glob(".*"))
    finish(place, output)
    assert digests(place / output) == digests(place / "whole")
