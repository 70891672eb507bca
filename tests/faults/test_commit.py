"""A process that is killed between the two renames of a commit: the stage is complete, under another name."""

import shutil
from pathlib import Path

from harness import working_in

from atopipe.pipeline import cli


def test_a_commit_that_was_cut_off_is_ended(finished_run: Path) -> None:
    stages = finished_run / "out/stages"
    (stages / "train").rename(stages / ".train.partial")
    shutil.copytree(stages / "shrink", stages / ".shrink.old")
    with working_in(finished_run):
        assert cli.main(["run", "--config", "config.yaml", "--output", "out", "--until", "shrink", "--quiet"]) == 0
    said = (finished_run / "out/events.jsonl").read_text()
    assert said.count('"stage started", "stage": "train"') == 1


def test_an_attempt_without_a_result_is_dropped(finished_run: Path) -> None:
    stages = finished_run / "out/stages"
    (stages / "report").rename(stages / ".report.partial")
    (stages / ".report.partial/result.json").unlink()
    with working_in(finished_run):
        assert cli.main(["report", "out", "--quiet"]) in (0, 3, 4)
    said = (finished_run / "out/events.jsonl").read_text()
    assert said.count('"stage started", "stage": "report"') == 2
    assert not list(stages.glob(".*"))
