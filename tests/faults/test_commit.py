"""What is complete stays complete: commits that are cut off in the middle, checkpoints of other code."""

import json
import shutil
import signal
from pathlib import Path

import pytest
import torch
from harness import working_in

from atopipe.ato.snapshot import Snapshot
from atopipe.pipeline.cli.main import main
from atopipe.pipeline.rundir.checkpoints import Checkpoints
from atopipe.pipeline.rundir.store import StageStore
from atopipe.pipeline.system.signals import StopRequest


def test_a_commit_that_was_cut_off_is_ended(finished_run: Path) -> None:
    stages = finished_run / "out/stages"
    (stages / "train").rename(stages / ".train.partial")
    shutil.copytree(stages / "shrink", stages / ".shrink.old")
    with working_in(finished_run):
        assert main(["run", "--config", "config.yaml", "--output", "out", "--until", "shrink", "--quiet"]) == 0
    said = (finished_run / "out/events.jsonl").read_text()
    assert said.count('"stage started", "stage": "train"') == 1


def test_an_attempt_without_a_result_is_dropped(finished_run: Path) -> None:
    stages = finished_run / "out/stages"
    (stages / "report").rename(stages / ".report.partial")
    (stages / ".report.partial/result.json").unlink()
    with working_in(finished_run):
        assert main(["report", "out", "--quiet"]) in (0, 3, 4)
    said = (finished_run / "out/events.jsonl").read_text()
    assert said.count('"stage started", "stage": "report"') == 2
    assert not list(stages.glob(".*"))


def test_an_older_result_comes_back_where_a_commit_was_cut_off_in_the_middle(finished_run: Path) -> None:
    stages = finished_run / "out/stages"
    (stages / "report").rename(stages / ".report.old")
    (stages / ".report.partial").mkdir()
    with working_in(finished_run):
        assert main(["run", "--config", "config.yaml", "--output", "out", "--quiet"]) in (0, 3, 4)
    said = (finished_run / "out/events.jsonl").read_text()
    assert said.count('"stage started", "stage": "report"') == 1
    assert (stages / "report/result.json").exists()


def test_ctrl_c_in_the_middle_of_a_commit_waits_for_its_end(
    finished_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_in_place = StageStore._put_in_place

    def interrupted(store: StageStore, stage: str) -> None:
        signal.raise_signal(signal.SIGINT)
        put_in_place(store, stage)

    monkeypatch.setattr(StageStore, "_put_in_place", interrupted)
    with working_in(finished_run):
        assert main(["report", "out", "--force", "--quiet"]) == 130
        assert main(["verify", "out"]) == 0
    events = [json.loads(line) for line in (finished_run / "out/events.jsonl").read_text().splitlines()]
    assert (events[-1]["event"], events[-1]["stage"]) == ("stage complete", "report")


def test_checkpoints_of_other_code_make_room(tmp_path: Path) -> None:
    said: list[str] = []

    def keeper(key: str) -> Checkpoints:
        return Checkpoints(tmp_path, key, 0.0, StopRequest(), said.append)

    def snapshot(step: int) -> Snapshot:
        return Snapshot({"w": torch.zeros(1)}, {"trainer": {"steps": {"finished": step}}})

    for key, steps in (("old", (500, 600)), ("new", (1, 2))):
        kept = keeper(key)
        assert kept.latest() is None
        for step in steps:
            kept.cost = 0.0
            kept.after_step(f"phase {step}", lambda step=step: snapshot(step))  # type: ignore[misc]
    assert said == [f"starting from scratch: '{tmp_path}' belongs to other settings, code, data or libraries"]
    assert sorted(file.stem for file in tmp_path.glob("*.json")) == ["000000000001", "000000000002"]
