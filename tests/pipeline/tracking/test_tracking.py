"""Trackers show what events.jsonl says, once, and never stop a run."""

import json
import shutil
import socket
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from atopipe.pipeline.cli.main import main
from atopipe.pipeline.config.load import load_config
from atopipe.pipeline.rundir.directory import RunDirectory
from atopipe.pipeline.rundir.events import current, read_events
from atopipe.pipeline.system.errors import GateFailed, Interrupted, MissingError, UsageError
from atopipe.pipeline.system.machine import library_versions
from atopipe.pipeline.tracking import mirror
from atopipe.pipeline.tracking.mirror import FILES, NEEDS, mirrored, parent_tracked

HERE = {name: all(map(find_spec, modules)) for name, modules in NEEDS.items()}
needs_tensorboard = pytest.mark.skipif(not HERE["tensorboard"], reason="TensorBoard is not installed")
needs_mlflow = pytest.mark.skipif(not HERE["mlflow"], reason="MLflow is not installed")
their_warnings = pytest.mark.filterwarnings("ignore")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working directory without settings of MLflow from outside, and without a network."""
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)
    asked: list[object] = []
    monkeypatch.setattr(socket.socket, "connect", lambda _, address: asked.append(address))
    monkeypatch.setattr(sys, "path", sys.path.copy())
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    assert asked == []


@pytest.fixture
def done(here: Path, finished: Path) -> Path:
    """A complete run with a baseline, in `out`."""
    shutil.copytree(finished, here, dirs_exist_ok=True)
    return here / "out"


@pytest.fixture
def run(here: Path) -> RunDirectory:
    return RunDirectory.create(here / "run", load_config(None, {"model.name": "m", "target_flops": 0.5}))


def tell(run: RunDirectory, stage: str, epochs: Sequence[int]) -> None:
    run.record.event("stage started", stage=stage)
    for epoch in epochs:
        run.record.event("epoch", epoch=epoch, epochs=9, phase="dense", loss=1.0 / epoch)


def again(*flags: str) -> int:
    return main(["run", "--config", "config.yaml", "--output", "out", "--quiet", *flags])


def history(stage: str, value: str) -> list[tuple[int, float]]:
    """What the run itself recorded."""
    records = json.loads(Path(f"out/stages/{stage}/history.json").read_text())
    return [(record["epoch"], pytest.approx(record[value])) for record in records]


def test_epochs_that_were_gone_through_again_count_once(run: RunDirectory) -> None:
    tell(run, "train", [1, 2, 3])
    tell(run, "baseline", [1, 2])
    tell(run, "train", [3, 4])
    with (run.root / "events.jsonl").open("a") as file:
        file.write('{"time": 1, "event": "ep')
    events = current(read_events(run.root / "events.jsonl"))
    epochs = [(event["stage"], event["epoch"]) for event in events if event["event"] == "epoch"]
    assert epochs == [("train", 1), ("train", 2), ("baseline", 1), ("baseline", 2), ("train", 3), ("train", 4)]


class Notes:
    """Keeps what it is told."""

    def __init__(self, fails_at: int = 0) -> None:
        self.told: list[Any] = []
        self.fails_at = fails_at

    def parameters(self, values: Mapping[str, str]) -> None:
        self._note(dict(values))

    def epoch(self, stage: str, epoch: int, values: Mapping[str, float], seconds: float) -> None:
        self._note((stage, epoch, dict(values)))

    def metrics(self, values: Mapping[str, float], seconds: float) -> None:
        self._note(dict(values))

    def close(self, outcome: str, files: Sequence[Path]) -> None:
        self._note((outcome, [file.name for file in files]))

    def _note(self, what: object) -> None:
        if len(self.told) + 1 == self.fails_at:
            raise OSError("the disk is full")
        self.told.append(what)


@pytest.fixture
def notes(monkeypatch: pytest.MonkeyPatch) -> Notes:
    found = Notes()
    monkeypatch.setattr(mirror, "NEEDS", {"notes": ()})
    monkeypatch.setattr(mirror, "_tracker", lambda *_, **__: found)
    return found


def test_what_was_and_what_comes_is_told_once(run: RunDirectory, notes: Notes) -> None:
    tell(run, "train", [1])
    with mirrored(run, ["notes"], force=False, say=pytest.fail):
        run.record.event("epoch", epoch=2, epochs=9, phase="small", loss=0.5)
        run.record.event("stage complete", stage="train", seconds=1.0, metrics={"time.epochs_s": 3.0})
    run.record.event("epoch", epoch=3, epochs=9, phase="small", loss=0.5)
    parameters, *told = notes.told
    assert parameters["model.name"] == "m"
    assert parameters["recipe.phases.dense"] == "0.1"
    assert "recipe.projection.half_space" not in parameters
    assert told == [
        ("train", 1, {"loss": 1.0}),
        ("train", 2, {"loss": 0.5}),
        {"time.epochs_s": 3.0},
        {},
        ("finished", ["config.yaml", "events.jsonl"]),
    ]


def test_a_training_that_begins_anew_is_not_mixed_with_the_old_one(run: RunDirectory, notes: Notes) -> None:
    tell(run, "train", [1, 2])
    with mirrored(run, ["notes"], force=True, say=pytest.fail):
        tell(run, "train", [1])
    assert notes.told[1:-2] == [("train", 1, {"loss": 1.0})]


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (GateFailed("too slow"), "finished"),
        (Interrupted("stopped"), "interrupted"),
        (KeyboardInterrupt(), "interrupted"),
        (UsageError("wrong"), "failed"),
    ],
)
def test_the_outcome_is_that_of_the_run(error: BaseException, outcome: str, run: RunDirectory, notes: Notes) -> None:
    with pytest.raises(type(error)), mirrored(run, ["notes"], force=False, say=pytest.fail):
        raise error
    assert notes.told[-1][0] == outcome
    assert run.record.followers == []


def test_a_tracker_that_breaks_is_left_and_the_run_goes_on(run: RunDirectory, notes: Notes) -> None:
    notes.fails_at = 3
    said: list[str] = []
    with mirrored(run, ["notes"], force=False, say=said.append):
        tell(run, "train", [1, 2, 3])
    assert said == ["notes has failed and is switched off (the disk is full); events.jsonl continues"]
    assert [event["epoch"] for event in read_events(run.root / "events.jsonl") if "epoch" in event] == [1, 2, 3]


def test_a_missing_package_is_named_before_anything_is_trained(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(mirror, "NEEDS", {**NEEDS, "mlflow": ("no_such_package",)})
    assert main(["run", "--model", "resnet18", "--target-flops", "0.5", "--output", "new", "--mlflow"]) == 5
    sentence = "atopipe: --mlflow needs the package 'no_such_package': pip install 'atopipe[mlflow]'\n"
    assert capsys.readouterr().err == sentence
    assert not (here / "new/events.jsonl").exists()


@needs_mlflow
def test_the_version_is_known_whichever_package_it_came_from() -> None:
    assert library_versions(["mlflow"])["mlflow"] != "absent"


@needs_mlflow
@their_warnings
def test_a_store_that_cannot_be_opened_is_refused(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    (run.root / "notes.txt").write_text("this is no database, and long enough to be none in the eyes of SQLite" * 9)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{run.root / 'notes.txt'}")
    with (
        pytest.raises(MissingError, match=r"^--mlflow cannot be used here \(.+\): repair it, or omit the option$"),
        mirrored(run, ["mlflow"], force=False, say=pytest.fail),
    ):
        pytest.fail("it was opened")


@needs_tensorboard
@their_warnings
def test_tensorboard_reads_what_the_run_recorded(done: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for _ in range(2):  # the second time in the place of the first
        assert again("--tensorboard") == 0
    board = EventAccumulator(str(done / "tensorboard"))
    board.Reload()
    for stage in ("train", "baseline"):
        shown = [(event.step, event.value) for event in board.Scalars(f"{stage}/val_accuracy")]
        assert shown == history(stage, "val_accuracy")
    for name, value in json.loads((done / "metrics.json").read_text()).items():
        assert [event.value for event in board.Scalars(f"metrics/{name}")] == [pytest.approx(value)]
    (settings,) = board.Tensors("settings/text_summary")
    assert b"| target_flops | 0.6 |" in settings.tensor_proto.string_val[0]


@needs_mlflow
@their_warnings
def test_mlflow_reads_what_the_run_recorded(done: Path, here: Path) -> None:
    from mlflow.tracking import MlflowClient

    for _ in range(2):  # the second time the same MLflow run, which changes in nothing
        assert again("--mlflow") == 0
    client = MlflowClient(tracking_uri=f"sqlite:///{here / 'mlflow.db'}")
    (run,) = client.search_runs([client.get_experiment_by_name("atopipe").experiment_id])
    assert (run.info.run_name, run.info.status) == ("out", "FINISHED")
    assert run.data.params["target_flops"] == "0.6"
    for stage in ("train", "baseline"):
        shown = [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, f"{stage}.loss")]
        assert shown == history(stage, "loss")
    for name, value in json.loads((done / "metrics.json").read_text()).items():
        assert [metric.value for metric in client.get_metric_history(run.info.run_id, name)] == [value]
    assert {file.path for file in client.list_artifacts(run.info.run_id)} == set(FILES)


@needs_mlflow
@their_warnings
def test_a_run_that_begins_anew_is_another_one_in_mlflow(run: RunDirectory, here: Path) -> None:
    from mlflow.tracking import MlflowClient

    def runs() -> int:
        client = MlflowClient(tracking_uri=f"sqlite:///{here / 'mlflow.db'}")
        return len(client.search_runs([client.get_experiment_by_name("atopipe").experiment_id]))

    counts = []
    for force in (False, False, True):
        with mirrored(run, ["mlflow"], force=force, say=pytest.fail):
            tell(run, "train", [1])
        counts.append(runs())
    assert counts == [1, 1, 2]
    (run.root / "mlflow.json").write_text((run.root / "mlflow.json").read_text().replace('"run": "', '"run": "gone'))
    with mirrored(run, ["mlflow"], force=False, say=pytest.fail):
        assert runs() == 3


@needs_mlflow
@their_warnings
def test_the_members_of_a_sweep_are_children_of_its_run(here: Path) -> None:
    from mlflow.tracking import MlflowClient

    from atopipe.pipeline.tracking.mlflow import open_tracker

    sweep, told = here / "curve", list[str]()
    (sweep / "runs" / "0.3").mkdir(parents=True)
    (sweep / "sweep.json").write_text("{}")
    with parent_tracked(sweep, ["mlflow", "tensorboard"], {"seed": "0, 1"}, ["sweep.json", "sweep.csv"], told.append):
        child = open_tracker(sweep / "runs" / "0.3", force=False)
    client = MlflowClient(tracking_uri=f"sqlite:///{here / 'mlflow.db'}")
    parent = client.get_run(client.get_run(child.run_id).data.tags["mlflow.parentRunId"])
    assert parent.info.run_name == "curve"
    assert parent.info.status == "FINISHED"
    assert parent.data.params == {"seed": "0, 1"}
    assert [file.path for file in client.list_artifacts(parent.info.run_id)] == ["sweep.json"]
    assert told == []
    assert not (sweep / "tensorboard").exists()
