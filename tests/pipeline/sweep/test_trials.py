"""Run directories and commands of a sweep: data are read once for all, and what is complete is not started."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from atopipe.pipeline.config.load import load_config
from atopipe.pipeline.rundir import external_inputs
from atopipe.pipeline.rundir.directory import RunDirectory
from atopipe.pipeline.sweep.plan import Axis, Member, plan
from atopipe.pipeline.sweep.trials import SweepDirectory


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A class folder with twelve images."""
    for part, kind, number in [(p, k, n) for p in ("train", "val") for k in ("cat", "dog") for n in range(3)]:
        file = tmp_path / "images" / part / kind / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8, 3), number * 40, np.uint8)).save(file)
    return tmp_path / "images"


def members(images: Path, *axes: Axis) -> tuple[Member, ...]:
    given = {"model.name": "resnet20", "data.source": f"imagefolder:{images}"}
    return plan(axes, lambda chosen: load_config(None, {**given, **chosen}), independent=False)


AXES = Axis("model.name", ("resnet20", "resnet56")), Axis("target_flops", ("0.7", "0.5")), Axis("seed", ("0", "1"))


def test_images_are_read_once_for_all_runs(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Path] = []
    digest = external_inputs.sha256_file

    def counted(path: Path) -> str:
        read.append(path)
        return digest(path)

    monkeypatch.setattr(external_inputs, "sha256_file", counted)
    runs, sweep = members(images, *AXES), SweepDirectory(tmp_path / "curve")
    sweep.make_runs(runs)
    seen = [RunDirectory(sweep.run(run.name), run.config).stages.outside for run in runs]
    assert len(runs) == 8
    assert len({digests["data"] for digests in seen}) == 1
    assert len(read) == len({*read})


def test_a_change_of_the_images_is_seen_by_every_run(images: Path, tmp_path: Path) -> None:
    runs, sweep = members(images, *AXES), SweepDirectory(tmp_path / "curve")
    sweep.make_runs(runs)
    before = RunDirectory(sweep.run(runs[-1].name), runs[-1].config).stages.outside
    Image.fromarray(np.full((9, 9, 3), 7, np.uint8)).save(images / "train/cat/0.png")
    after = [RunDirectory(sweep.run(run.name), run.config).stages.outside for run in runs]
    assert all(digests["data"] != before["data"] for digests in after)


def test_the_leader_goes_first_and_the_others_take_its_stages_over(images: Path, tmp_path: Path) -> None:
    runs, sweep = members(images, Axis("target_flops", ("0.7", "0.5", "0.2"))), SweepDirectory(tmp_path / "curve")
    sweep.make_runs(runs)
    first, leader, *rest = sweep.trials(runs, ["--mlflow"])
    assert (first.name, first.after, first.directory) == ("0.2 until search", None, sweep.run("0.2"))
    assert first.command[-3:] == ("--until", "search", "--mlflow")
    assert (leader.name, leader.after) == ("0.2", first.name)
    assert "--reuse" not in leader.command
    for trial in rest:
        assert trial.after == first.name
        assert trial.command[-3:-1] == ("--reuse", str(sweep.run("0.2")))
