"""What would run, and why."""

from pathlib import Path

import pytest

from atopipe.pipeline.config.load import load_config
from atopipe.pipeline.config.schema import Config
from atopipe.pipeline.rundir.directory import RunDirectory
from atopipe.pipeline.rundir.layout import StageSpec
from atopipe.pipeline.rundir.plan import changes, plan
from atopipe.pipeline.system.files import write_text


def spec(
    name: str,
    inputs: tuple[str, ...] = (),
    settings: tuple[str, ...] = ("seed", "recipe"),
    libraries: tuple[str, ...] = ("numpy",),
) -> StageSpec:
    return StageSpec(name=name, inputs=inputs, settings=settings, libraries=libraries)


FIRST, SECOND, THIRD = spec("first"), spec("second", ("first",), ()), spec("third", ("second",), ())
ALL = (FIRST, SECOND, THIRD)


def config(**values: object) -> Config:
    return load_config(None, {"model.name": "resnet50", "target_flops": 0.3, **values})


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    """A run whose three stages are complete."""
    run = RunDirectory.create(tmp_path / "run", config())
    for stage in ALL:
        complete(run, stage)
    return run


def complete(run: RunDirectory, stage: StageSpec, content: str = "x") -> None:
    with run.stages.writing(stage) as attempt:
        write_text(attempt.folder / "out.txt", content)


def said(run: RunDirectory, *forced: str) -> list[str]:
    return [step.as_text() for step in plan(ALL, run, forced)]


def test_nothing_runs_where_nothing_has_changed(run: RunDirectory) -> None:
    assert said(run) == [f"{name:<8} is skipped: unchanged" for name in ("first", "second", "third")]


def test_a_changed_setting_is_named_with_both_values_and_reaches_all_that_follows(run: RunDirectory) -> None:
    changed = RunDirectory(run.root, config(**{"recipe.epochs": 7}))
    assert said(changed) == [
        f"first    runs: recipe.epochs was {run.config.recipe.epochs}, is 7",
        "second   runs: if the output of first changes",
        "third    runs: if the output of second changes",
    ]


def test_a_stage_that_was_asked_for_runs(run: RunDirectory) -> None:
    lines = said(run, "second")
    assert lines[0] == "first    is skipped: unchanged"
    assert lines[1:] == ["second   runs: requested", "third    runs: if the output of second changes"]


def test_another_result_of_a_stage_before_is_a_reason(run: RunDirectory) -> None:
    complete(run, FIRST, "y")
    assert changes(SECOND, run) == ["the output of stage first has changed"]


def test_a_library_is_named(run: RunDirectory) -> None:
    reasons = changes(spec("first", libraries=("numpy", "no-such-library")), run)
    assert reasons == ["no-such-library was not there, is absent"]


def test_what_was_never_done(tmp_path: Path) -> None:
    assert changes(FIRST, RunDirectory(tmp_path / "nowhere", config())) == ["not complete yet"]
    assert not (tmp_path / "nowhere").exists()
