"""The run directory: keys, atomic commits, what is refused, what is recorded."""

import json
import os
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from atopipe.pipeline.config.load import load_config
from atopipe.pipeline.config.schema import Config
from atopipe.pipeline.rundir.directory import RunDirectory
from atopipe.pipeline.rundir.events import current, measured, read_events
from atopipe.pipeline.rundir.layout import ManifestForm, ResultForm, StageSpec
from atopipe.pipeline.rundir.plan import changes
from atopipe.pipeline.system.errors import MissingError, UsageError
from atopipe.pipeline.system.files import read_sealed, sha256_file, sha256_json, write_bytes, write_sealed, write_text
from atopipe.pipeline.system.machine import hardware, library_versions


def spec(
    name: str,
    inputs: tuple[str, ...] = (),
    settings: tuple[str, ...] = ("seed",),
    libraries: tuple[str, ...] = ("numpy",),
) -> StageSpec:
    return StageSpec(name=name, inputs=inputs, settings=settings, libraries=libraries)


FIRST, SECOND = spec("first"), spec("second", ("first",), ())


def config(**values: object) -> Config:
    return load_config(None, {"model.name": "resnet50", "target_flops": 0.3, **values})


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return RunDirectory.create(tmp_path / "run", config())


def complete(run: RunDirectory, stage: StageSpec, content: str = "x", **metrics: float) -> None:
    with run.stages.writing(stage) as attempt:
        write_text(attempt.folder / "out.txt", content)
        attempt.metrics = metrics


def test_a_result_exists_only_after_commit(run: RunDirectory) -> None:
    with run.stages.writing(FIRST) as attempt:
        write_text(attempt.folder / "out.txt", "half")
        assert run.stages.result("first") is None
        assert not run.stages.folder("first").exists()
        attempt.metrics = {"a.b": 1.0}
    result = run.stages.result("first")
    assert result is not None
    assert result.artifacts == {"out.txt": sha256_file(run.stages.folder("first") / "out.txt")}
    assert result.metrics == {"a.b": 1.0}
    assert [path.name for path in (run.root / "stages").iterdir()] == ["first"]


def test_an_interrupted_attempt_leaves_the_old_result_and_its_remains_are_dropped(run: RunDirectory) -> None:
    complete(run, FIRST, "old")
    with suppress(KeyboardInterrupt), run.stages.writing(FIRST) as attempt:
        write_text(attempt.folder / "rubbish.txt", "half")
        raise KeyboardInterrupt
    assert [path.name for path in (run.root / "stages").iterdir()] == ["first"]
    (run.root / "stages" / ".first.partial").mkdir()  # of a process that was killed
    write_text(run.root / "stages" / ".first.partial" / "rubbish.txt", "half")
    assert run.stages.artifact("first", "out.txt").read_text() == "old"
    complete(run, FIRST, "new")
    assert {path.name for path in run.stages.folder("first").iterdir()} == {"out.txt", "result.json"}
    assert run.stages.artifact("first", "out.txt").read_text() == "new"


def test_a_stage_is_current_until_something_it_depends_on_changes(run: RunDirectory) -> None:
    assert not run.stages.is_current(FIRST)
    complete(run, FIRST)
    assert run.stages.is_current(FIRST)
    assert RunDirectory(run.root, config(target_flops=0.4)).stages.is_current(FIRST)
    assert not RunDirectory(run.root, config(seed=1)).stages.is_current(FIRST)
    assert not run.stages.is_current(spec("first", libraries=("numpy", "torch")))


@pytest.mark.parametrize(("content", "metrics"), [("y", {}), ("x", {"m": 1.0})], ids=["artifact", "metric"])
def test_a_change_upstream_makes_what_reads_it_stale(
    run: RunDirectory, content: str, metrics: dict[str, float]
) -> None:
    complete(run, FIRST, "x")
    complete(run, SECOND)
    complete(run, FIRST, "x")
    assert run.stages.is_current(SECOND)
    complete(run, FIRST, content, **metrics)
    assert not run.stages.is_current(SECOND)


def test_a_stale_stage_is_in_no_record(run: RunDirectory) -> None:
    complete(run, FIRST, m=1.0)
    complete(run, SECOND, n=2.0)
    assert {"m", "n"} < set(run.record.publish((FIRST, SECOND)))
    complete(run, FIRST, m=3.0)
    metrics = run.record.publish((FIRST, SECOND))
    assert set(metrics) == {"m", "memory.peak_bytes", "time.first_s", "time.total_s"}
    assert (metrics["m"], metrics["time.total_s"]) == (3.0, metrics["time.first_s"])
    assert json.loads((run.root / "metrics.json").read_text()) == metrics


def test_the_manifest_chains_the_digests(run: RunDirectory) -> None:
    complete(run, FIRST)
    complete(run, SECOND)
    run.record.publish((FIRST, SECOND))
    manifest = json.loads((run.root / "manifest.json").read_text())
    first, second = manifest["stages"]
    assert second["inputs"] == {"first": first["digest"]}
    assert first["artifacts"] == {"out.txt": sha256_file(run.stages.folder("first") / "out.txt")}
    assert {"command", "seed", "versions", "hardware"} <= set(manifest)


@pytest.mark.parametrize(
    "harm",
    [
        lambda copies: shutil.rmtree(copies),
        lambda copies: (copies / "out.txt").unlink(),
        lambda copies: (copies / "out.txt").write_text("another run's"),
        lambda copies: ((copies / "out.txt").unlink(), (copies / "out.txt").mkdir()),
        lambda copies: ((copies / "out.txt").unlink(), (copies / "out.txt").symlink_to("kept.txt")),
        lambda copies: copies.rename(copies.with_name("moved")).parent.joinpath("bundle").symlink_to("moved"),
        lambda copies: (shutil.rmtree(copies), copies.write_text("a file")),
    ],
    ids=["folder deleted", "file deleted", "changed", "a folder", "a link", "a linked folder", "a file for the folder"],
)
def test_copies_of_a_published_stage_are_put_back(run: RunDirectory, harm: Callable[[Path], object]) -> None:
    stage = replace(FIRST, published=True)
    with run.stages.writing(stage) as attempt:
        (attempt.folder / "bundle").mkdir()
        write_text(attempt.folder / "bundle/out.txt", "model")
    assert run.stages.restore_copies(stage) == ["bundle/out.txt"]
    assert run.stages.restore_copies(stage) == []
    harm(run.root / "bundle")
    assert run.stages.restore_copies(stage) == ["bundle/out.txt"]
    assert (run.root / "bundle/out.txt").read_text() == "model"
    assert not (run.root / "bundle").is_symlink()
    assert not (run.root / "bundle/out.txt").is_symlink()
    assert run.stages.restore_copies(FIRST) == []


def test_a_changed_artifact_is_not_handed_out(run: RunDirectory) -> None:
    complete(run, FIRST)
    path = run.stages.folder("first") / "out.txt"
    path.write_text("y")
    with pytest.raises(MissingError) as caught:
        run.stages.artifact("first", "out.txt")
    assert str(caught.value) == f"'{path}' has changed since stage first wrote it: run again with --from first"


def test_a_change_is_noticed_in_a_file_that_was_read_before(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even one that leaves the size and the time of change as they were; until then it is read once."""
    complete(run, FIRST)
    path = run.stages.folder("first") / "out.txt"
    old = time.time() - 60
    os.utime(path, (old, old))
    monkeypatch.setattr("atopipe.pipeline.rundir.store.SETTLED_NS", 50_000_000)
    time.sleep(0.1)
    assert [run.stages.artifact("first", "out.txt") for _ in range(2)] == [path, path]
    with monkeypatch.context() as patch:
        patch.setattr("atopipe.pipeline.rundir.store.sha256_file", lambda path: pytest.fail("it is read again"))
        run.stages.artifact("first", "out.txt")
    path.write_text("y")
    os.utime(path, (old, old))
    with pytest.raises(MissingError, match="has changed since stage first wrote it"):
        run.stages.artifact("first", "out.txt")


def test_the_manifest_says_what_made_each_stage(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    """A later command on another machine changes nothing of what is said of the training."""
    there = {"cpu": "the one that trained", "gpu": "a large one", "memory_bytes": 1}
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr("atopipe.pipeline.rundir.store.hardware", lambda: there)
        elsewhere.setattr("sys.argv", ["atopipe", "train"])
        complete(run, FIRST)
    monkeypatch.setattr("sys.argv", ["atopipe", "report"])
    complete(run, SECOND)
    run.record.publish((FIRST, SECOND))
    manifest = read_sealed(run.root / "manifest.json", ManifestForm)
    first, second = manifest["stages"]
    assert manifest["hardware"] == first["hardware"] == there
    assert (manifest["command"], first["command"], second["command"]) == (["train"], ["train"], ["report"])
    assert second["hardware"]["cpu"] == hardware()["cpu"]
    assert manifest["versions"] == library_versions(["atopipe", "numpy"])


def test_a_result_of_an_older_version_keeps_its_digest(run: RunDirectory) -> None:
    complete(run, FIRST)
    path = run.stages.folder("first") / "result.json"
    older = {name: value for name, value in read_sealed(path, ResultForm).items() if name != "machine"}
    write_sealed(path, older)
    run.record.publish((FIRST,))
    assert read_sealed(run.root / "manifest.json", ManifestForm)["stages"][0]["result"] == sha256_json(older)


def test_a_setting_that_came_later_changes_nothing_unless_it_is_used(run: RunDirectory) -> None:
    """Results of a version that had no choice are those of the default."""
    stage = spec("first", settings=("recipe", "seed", "baseline"))
    complete(run, stage)
    path = run.stages.folder("first") / "result.json"
    older = read_sealed(path, ResultForm)
    del older["depends"]["settings"]["baseline"], older["depends"]["settings"]["recipe"]["compile"]
    write_sealed(path, {**older, "key": sha256_json(older["depends"])})
    assert run.stages.is_current(stage)
    assert changes(stage, run) == []
    used = RunDirectory(run.root, config(baseline=True, **{"recipe.compile": True}))
    assert not used.stages.is_current(stage)
    assert changes(stage, used) == ["recipe.compile was False, is True", "baseline was False, is True"]


def test_a_run_whose_settings_no_longer_parse_can_be_replaced(run: RunDirectory) -> None:
    complete(run, FIRST)
    (run.root / "config.yaml").write_text("{model: resnet50, target_flops: 0.3, sharpness: 3}")
    with pytest.raises(UsageError) as caught:
        RunDirectory.create(run.root, config())
    reason = "unknown configuration key 'sharpness': "
    assert str(caught.value).startswith(f"this version of atopipe cannot read the settings of '{run.root}' ({reason}")
    assert str(caught.value).endswith("or replace the run with 'atopipe run --force'")
    assert RunDirectory.create(run.root, config(), force=True).config == config()
    assert RunDirectory.open(run.root).config == config()


def test_how_long_latency_is_measured_leaves_a_run_the_same_run(run: RunDirectory) -> None:
    complete(run, FIRST)
    RunDirectory.create(run.root, config(**{"validation.latency_s": 60}))


def test_a_damaged_result_is_named(run: RunDirectory) -> None:
    complete(run, FIRST)
    path = run.stages.folder("first") / "result.json"
    path.write_text('{"stage": ')
    with pytest.raises(MissingError) as caught:
        run.stages.result("first")
    assert str(caught.value) == f"'{path}' is damaged: run again with --from first"


def test_the_same_run_opens_again_with_its_configuration(run: RunDirectory) -> None:
    complete(run, FIRST)
    again = RunDirectory.create(run.root, config(threads=1))
    assert again.stages.is_current(FIRST)
    assert RunDirectory.open(run.root).config == config(threads=1)


def test_a_run_that_never_got_anywhere_gives_way(run: RunDirectory) -> None:
    with suppress(KeyboardInterrupt), run.stages.writing(FIRST):
        raise KeyboardInterrupt
    assert RunDirectory.create(run.root, config(seed=1)).config.seed == 1


def test_another_configuration_is_refused_unless_forced(run: RunDirectory) -> None:
    complete(run, FIRST)
    with pytest.raises(UsageError) as caught:
        RunDirectory.create(run.root, config(seed=1))
    remedy = "choose another --output, --update to change its settings, or --force to replace it"
    assert str(caught.value) == f"output '{run.root}' belongs to another configuration: {remedy}"
    assert RunDirectory.open(run.root).config.seed == 0
    RunDirectory.create(run.root, config(seed=1), force=True)
    assert RunDirectory.open(run.root).config.seed == 1


def test_a_folder_of_somebody_else_is_refused_even_if_forced(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").touch()
    with pytest.raises(UsageError) as caught:
        RunDirectory.create(tmp_path, config(), force=True)
    assert str(caught.value) == f"output '{tmp_path}' is not empty and not a run of atopipe: choose another --output"
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_file_as_output_and_a_folder_without_run_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match=r"file' is a file: choose another --output$"):
        RunDirectory.create(tmp_path / "file", config())
    with pytest.raises(
        UsageError, match=r"is not a run of atopipe: give the folder that 'atopipe run' or 'atopipe train' wrote$"
    ):
        RunDirectory.open(tmp_path)


def test_events_are_appended_one_object_per_line(run: RunDirectory) -> None:
    run.record.event("started", stage="first")
    run.record.event("complete", stage="first", metrics={"a": 1})
    events = [json.loads(line) for line in (run.root / "events.jsonl").read_text().splitlines()]
    assert [event["event"] for event in events] == ["started", "complete"]
    assert events[0]["time"] <= events[1]["time"]


def test_writing_leaves_no_temporary_file_and_keeps_the_old_content_on_failure(tmp_path: Path) -> None:
    path = tmp_path / "a"
    write_bytes(path, b"old")
    with pytest.raises(TypeError):
        write_bytes(path, "text")  # type: ignore[arg-type]
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
    write_bytes(path, b"new")
    assert path.read_bytes() == b"new"


HOSTILE_EVENTS = (
    b'{"event": "epoch", "time": 0, "stage": "train"}',
    b'{"event": "epoch", "time": 0, "stage": "train", "epoch": "1"}',
    b'{"event": "epoch", "time": 0, "stage": 3, "epoch": 1}',
    b'{"event": 3, "time": 0}',
    b"[" * 200_000,
    b"\xff\xfe\x00",
    b"null",
    b"9" * 5000,
)


@pytest.mark.parametrize("line", HOSTILE_EVENTS, ids=range(len(HOSTILE_EVENTS)))
def test_lines_that_are_no_events_are_left_out(line: bytes, tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    whole = b'{"event": "epoch", "time": 0, "stage": "train", "epoch": 2, "loss": "low", "kept": {"flops": 0.5}}\n'
    path.write_bytes(line + b"\n" + whole)
    (event,) = current(read_events(path))
    assert measured(event) == {"kept.flops": 0.5}


def test_a_pipe_in_the_place_of_events_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "events.jsonl")
    assert read_events(tmp_path / "events.jsonl") == read_events(tmp_path) == []
