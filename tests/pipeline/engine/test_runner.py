"""Running stages: what is skipped, what is redone, and what a failing stage leaves behind."""

import errno
import json
import socket
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from atopipe.pipeline.config.load import load_config
from atopipe.pipeline.engine.runner import execute, execute_together
from atopipe.pipeline.engine.stage import Context, Stage
from atopipe.pipeline.report.terminal import QuietDisplay
from atopipe.pipeline.rundir.directory import RunDirectory
from atopipe.pipeline.system.errors import AtopipeError, Interrupted, MissingError, UsageError
from atopipe.pipeline.system.files import write_text
from atopipe.pipeline.system.job import Job


class Counting:
    """A stage that counts its runs and writes one file, or does `instead`."""

    def __init__(
        self,
        name: str,
        inputs: tuple[str, ...] = (),
        instead: Callable[[Context], Mapping[str, float]] | None = None,
    ) -> None:
        self.runs, self.instead = 0, instead
        distributed = name == "train"
        self.stage = Stage(name=name, inputs=inputs, settings=("seed",), run=self.run, distributed=distributed)

    def run(self, context: Context) -> Mapping[str, float]:
        self.runs += 1
        write_text(context.folder / "out.txt", f"run {self.runs}")
        return self.instead(context) if self.instead else {f"{self.stage.name}.runs": self.runs}


class Recording(QuietDisplay):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return RunDirectory.create(tmp_path / "run", load_config(None, {"model.name": "resnet18", "target_flops": 0.3}))


def test_complete_stages_are_skipped_and_a_forced_one_is_redone_with_what_reads_it(run: RunDirectory) -> None:
    first, second, shown = Counting("train"), Counting("shrink", ("train",)), Recording()
    execute([first.stage, second.stage], [first.stage, second.stage], run, shown)
    execute([first.stage, second.stage], [first.stage, second.stage], run, shown)
    assert (first.runs, second.runs) == (1, 1)
    assert shown.lines[-2:] == ["train    unchanged, skipped", "shrink   unchanged, skipped"]
    execute([first.stage], [first.stage, second.stage], run, shown, forced=["train"])
    execute([first.stage, second.stage], [first.stage, second.stage], run, shown)
    assert (first.runs, second.runs) == (2, 2)


@pytest.mark.parametrize("edited", ["net.py", "helper.py"])
def test_code_that_changes_while_a_stage_runs_is_no_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, edited: str
) -> None:
    """Which code was run would not be known; restored, the stage resumes."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text("import helper\n")
    (tmp_path / "helper.py").write_text("")
    config = load_config(None, {"model.name": "net.py:net", "target_flops": 0.3})

    def edit(context: Context) -> Mapping[str, float]:
        (tmp_path / edited).write_text("import helper  # edited\n")
        return {}

    stage = Stage(name="train", settings=("model",), run=edit)
    run = RunDirectory.create(tmp_path / "run", config)
    with pytest.raises(MissingError) as caught:
        execute([stage], [stage], run, QuietDisplay())
    assert str(caught.value) == (
        "model code changed while stage train ran: restore what was there and run again to resume, "
        "or run again to start with what is there now"
    )
    assert run.stages.result("train") is None


def test_images_that_change_while_a_stage_runs_are_no_result(tmp_path: Path) -> None:
    image = tmp_path / "photos/train/a/1.png"
    for part in ("train", "val"):
        for label in "ab":
            (tmp_path / "photos" / part / label).mkdir(parents=True)
            (tmp_path / "photos" / part / label / "1.png").write_text(part + label)
    source = f"imagefolder:{tmp_path / 'photos'}"
    config = load_config(None, {"model.name": "resnet18", "target_flops": 0.3, "data.source": source})

    def edit(context: Context) -> Mapping[str, float]:
        image.write_text("another")
        return {}

    stage = Stage(name="train", settings=("data",), run=edit)
    with pytest.raises(MissingError, match=r"^data changed while stage train ran: "):
        execute([stage], [stage], RunDirectory.create(tmp_path / "run", config), QuietDisplay())


def test_a_stage_alone_needs_what_it_reads(run: RunDirectory) -> None:
    first, second = Counting("train"), Counting("shrink", ("train",))
    with pytest.raises(UsageError) as caught:
        execute([second.stage], [first.stage, second.stage], run, QuietDisplay())
    remedy = f"run 'atopipe run --output {run.root} ...' first"
    assert str(caught.value) == f"stage train of '{run.root}' is not complete: {remedy}"
    third = Counting("export", ("shrink",))
    execute([first.stage, second.stage], [first.stage, second.stage, third.stage], run, QuietDisplay())
    execute([first.stage], [first.stage, second.stage, third.stage], run, QuietDisplay(), forced=["train"])
    with pytest.raises(UsageError) as caught:
        execute([third.stage], [first.stage, second.stage, third.stage], run, QuietDisplay())
    assert str(caught.value) == (
        f"stage shrink of '{run.root}' is out of date (the output of stage train has changed): "
        f"run 'atopipe shrink {run.root}' first"
    )


def test_in_a_job_the_first_process_does_what_comes_before_training_first(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job of one process, which has all that a larger one has but the others."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    for name, value in {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}.items():
        monkeypatch.setenv(name, value)
    measured, first, second = Counting("profile"), Counting("train", ("profile",)), Counting("shrink", ("train",))
    shown, stages = Recording(), [measured.stage, first.stage, second.stage]
    for _ in range(2):
        execute_together(Job(0, 1, 0, 1), stages, stages, run, shown, forced=[])
    done = [line.split()[0] for line in shown.lines if "unchanged" not in line and "device" not in line]
    assert done == ["profile", "train", "shrink"]
    assert (measured.runs, first.runs, second.runs) == (1, 1, 1)


def raising(error: BaseException) -> Callable[[Context], Mapping[str, float]]:
    def fail(context: Context) -> Mapping[str, float]:
        raise error

    return fail


@pytest.mark.parametrize(
    ("error", "kind", "sentence"),
    [
        (
            KeyboardInterrupt(),
            Interrupted,
            "interrupted in stage shrink: complete stages in '{root}' stay usable, run again to resume",
        ),
        (OSError(errno.ENOSPC, "No space left on device"), MissingError, "no space left in '{root}' ("),
        (UsageError("a sentence"), UsageError, "a sentence"),
    ],
    ids=["ctrl-c", "disk full", "own"],
)
def test_a_failing_stage_leaves_the_complete_ones_and_no_partial_folder(
    run: RunDirectory, error: BaseException, kind: type[AtopipeError], sentence: str
) -> None:
    first, second = Counting("train"), Counting("shrink", ("train",), instead=raising(error))
    with pytest.raises(kind) as caught:
        execute([first.stage, second.stage], [first.stage, second.stage], run, QuietDisplay())
    assert str(caught.value).startswith(sentence.format(root=run.root))
    assert [path.name for path in (run.root / "stages").iterdir()] == ["train"]
    last = json.loads((run.root / "events.jsonl").read_text().splitlines()[-1])
    assert (last["event"], last["stage"]) == ("stage failed", "shrink")
    second.instead = None
    execute([first.stage, second.stage], [first.stage, second.stage], run, QuietDisplay())
    assert (first.runs, second.runs) == (1, 2)


def test_a_run_directory_that_is_moved_meanwhile_is_named(run: RunDirectory) -> None:
    def moved(context: Context) -> dict[str, float]:
        run.root.rename(run.root.with_name("elsewhere"))
        (context.folder / "file").write_text("x")
        return {}

    stage = Counting("train", instead=moved)
    with pytest.raises(MissingError) as caught:
        execute([stage.stage], [stage.stage], run, QuietDisplay())
    words = "was moved or deleted while it was in use: move it back, and run again to resume"
    assert str(caught.value) == f"'{run.root}' {words}"


@pytest.mark.parametrize("to", ["folder", "file", "nowhere"])
def test_a_link_in_the_place_of_an_attempt_is_taken_away_and_not_followed(
    run: RunDirectory, to: str, tmp_path: Path
) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/kept").write_text("kept")
    (tmp_path / "file").write_text("kept")
    (run.root / "stages").mkdir(exist_ok=True)
    (run.root / "stages/.train.partial").symlink_to(tmp_path / to)
    stage = Counting("train")
    execute([stage.stage], [stage.stage], run, QuietDisplay())
    assert (tmp_path / "folder/kept").read_text() == (tmp_path / "file").read_text() == "kept"
    assert not (run.root / "stages/train").is_symlink()
