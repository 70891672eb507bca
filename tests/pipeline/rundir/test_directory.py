"""The run directory: keys, atomic commits, what is refused, what is recorded."""

import json
from pathlib import Path

import pytest

from atopipe.pipeline.config.load import load_config
from atopipe.pipeline.config.schema import Config
from atopipe.pipeline.rundir.directory import RunDirectory
from atopipe.pipeline.rundir.layout import StageSpec
from atopipe.pipeline.system.errors import MissingError, UsageError
from atopipe.pipeline.system.files import sha256_file, write_bytes, write_text


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
    folder = run.begin(stage.name)
    write_text(folder / "out.txt", content)
    run.commit(stage, metrics, seconds=2.0, peak_bytes=100)


def test_a_result_exists_only_after_commit(run: RunDirectory) -> None:
    folder = run.begin("first")
    write_text(folder / "out.txt", "half")
    assert run.result("first") is None
    assert not run.folder("first").exists()
    run.commit(FIRST, {"a.b": 1.0}, 2.0, 100)
    result = run.result("first")
    assert result is not None
    assert result.artifacts == {"out.txt": sha256_file(run.folder("first") / "out.txt")}
    assert result.metrics == {"a.b": 1.0}
    assert [path.name for path in (run.root / "stages").iterdir()] == ["first"]


def test_an_interrupted_attempt_leaves_the_old_result_and_its_remains_are_dropped(run: RunDirectory) -> None:
    complete(run, FIRST, "old")
    write_text(run.begin("first") / "rubbish.txt", "half")
    assert run.artifact("first", "out.txt").read_text() == "old"
    complete(run, FIRST, "new")
    assert {path.name for path in run.folder("first").iterdir()} == {"out.txt", "result.json"}
    assert run.artifact("first", "out.txt").read_text() == "new"


def test_a_stage_is_current_until_something_it_depends_on_changes(run: RunDirectory) -> None:
    assert not run.is_current(FIRST)
    complete(run, FIRST)
    assert run.is_current(FIRST)
    assert RunDirectory(run.root, config(target_flops=0.4)).is_current(FIRST)
    assert not RunDirectory(run.root, config(seed=1)).is_current(FIRST)
    assert not run.is_current(spec("first", libraries=("numpy", "torch")))


@pytest.mark.parametrize(("content", "metrics"), [("y", {}), ("x", {"m": 1.0})], ids=["artifact", "metric"])
def test_a_change_upstream_makes_what_reads_it_stale(
    run: RunDirectory, content: str, metrics: dict[str, float]
) -> None:
    complete(run, FIRST, "x")
    complete(run, SECOND)
    complete(run, FIRST, "x")
    assert run.is_current(SECOND)
    complete(run, FIRST, content, **metrics)
    assert not run.is_current(SECOND)


def test_a_stale_stage_is_in_no_record(run: RunDirectory) -> None:
    complete(run, FIRST, m=1.0)
    complete(run, SECOND, n=2.0)
    assert {"m", "n"} < set(run.publish((FIRST, SECOND)))
    complete(run, FIRST, m=3.0)
    metrics = run.publish((FIRST, SECOND))
    assert metrics == {"m": 3.0, "memory.peak_bytes": 100, "time.first_s": 2.0, "time.total_s": 2.0}
    assert json.loads((run.root / "metrics.json").read_text()) == metrics


def test_the_manifest_chains_the_digests(run: RunDirectory) -> None:
    complete(run, FIRST)
    complete(run, SECOND)
    run.publish((FIRST, SECOND))
    manifest = json.loads((run.root / "manifest.json").read_text())
    first, second = manifest["stages"]
    assert second["inputs"] == {"first": first["digest"]}
    assert first["artifacts"] == {"out.txt": sha256_file(run.folder("first") / "out.txt")}
    assert {"command", "seed", "versions", "hardware"} <= set(manifest)


def test_a_changed_artifact_is_not_handed_out(run: RunDirectory) -> None:
    complete(run, FIRST)
    path = run.folder("first") / "out.txt"
    path.write_text("y")
    with pytest.raises(MissingError) as caught:
        run.artifact("first", "out.txt")
    assert str(caught.value) == f"'{path}' has changed since stage first wrote it: run again with --from first"


def test_a_damaged_result_is_named(run: RunDirectory) -> None:
    complete(run, FIRST)
    path = run.folder("first") / "result.json"
    path.write_text('{"stage": ')
    with pytest.raises(MissingError) as caught:
        run.result("first")
    assert str(caught.value) == f"'{path}' is damaged: run again with --from first"


def test_the_same_run_opens_again_with_its_configuration(run: RunDirectory) -> None:
    complete(run, FIRST)
    again = RunDirectory.create(run.root, config(threads=1))
    assert again.is_current(FIRST)
    assert RunDirectory.open(run.root).config == config(threads=1)


def test_a_run_that_never_got_anywhere_gives_way(run: RunDirectory) -> None:
    run.begin("first")
    run.abandon("first")
    assert RunDirectory.create(run.root, config(seed=1)).config.seed == 1


def test_another_configuration_is_refused_unless_forced(run: RunDirectory) -> None:
    complete(run, FIRST)
    with pytest.raises(UsageError) as caught:
        RunDirectory.create(run.root, config(seed=1))
    remedy = "choose another --output, or --force to replace it"
    assert str(caught.value) == f"output '{run.root}' belongs to another configuration: {remedy}"
    assert RunDirectory.open(run.root).config.seed == 0
    RunDirectory.create(run.root, config(seed=1), force=True)
    assert RunDirectory.open(run.root).config.seed == 1


def test_a_folder_of_somebody_else_is_refused_even_if_forced(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").touch()
    with pytest.raises(UsageError) as caught:
        RunDirectory.create(tmp_path, config(), force=True)
    assert str(caught.value) == f"output '{tmp_path}' is not empty and is no run of atopipe: choose another --output"
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_file_as_output_and_a_folder_without_run_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match=r"file' is a file: choose another --output$"):
        RunDirectory.create(tmp_path / "file", config())
    with pytest.raises(
        UsageError, match=r"is no run of atopipe: give the folder that 'atopipe run' or 'atopipe train' wrote$"
    ):
        RunDirectory.open(tmp_path)


def test_events_are_appended_one_object_per_line(run: RunDirectory) -> None:
    run.event("started", stage="first")
    run.event("complete", stage="first", metrics={"a": 1})
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
