"""`verify`, `why`, `--from`, `--until`, `--dry-run` and `--from-manifest` on a real run."""

import copy
import json
import os
import random
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from harness import flip_bit

from atopipe.pipeline.cli.main import main
from atopipe.pipeline.rundir.directory import RunDirectory
from atopipe.pipeline.rundir.layout import ManifestForm, ResultForm
from atopipe.pipeline.rundir.verify import Problem, verify
from atopipe.pipeline.stages import STAGES
from atopipe.pipeline.system.files import read_sealed, write_sealed

NOT_VERIFIED = {"events.jsonl", "inputs.json", ".lock"}  # they keep growing, or can be made again


@pytest.fixture
def here(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a copy of the finished run in `out`."""
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    return tmp_path


def problems(root: Path) -> list[Problem]:
    return verify(RunDirectory.open(root), STAGES)


def files(root: Path) -> list[str]:
    return sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())


def test_a_run_as_its_stages_left_it_has_no_problem(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", "out"]) == 0
    assert capsys.readouterr().out == "'out' is intact: every file matches its digest\n"


def test_one_flipped_bit_in_any_file_is_found(here: Path) -> None:
    draw, out = random.Random(0), here / "out"
    for name in files(out):
        if name in NOT_VERIFIED or name == "config.yaml":
            continue
        before = (out / name).read_bytes()
        flip_bit(out / name, draw)
        assert name in {problem.file for problem in problems(out)}, name
        (out / name).write_bytes(before)
    assert problems(out) == []


def test_missing_changed_and_extra_files_are_named(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = here / "out"
    (out / "stages/export/model.onnx").unlink()
    (out / "bundle/labels.txt").write_text("cat\n")
    (out / "stages/train/notes.txt").write_text("mine")
    assert main(["verify", "out"]) == 5
    captured = capsys.readouterr()
    assert set(captured.out.splitlines()) == {
        "stages/export/model.onnx: missing",
        "bundle/labels.txt: changed",
        "stages/train/notes.txt: extra: no stage wrote it",
    }
    remedy = "remove extra files, restore the others from a copy or run their stage again with --from"
    assert captured.err == f"atopipe: 'out': 3 files are missing, changed or extra: {remedy}\n"


def test_a_stage_from_another_run_breaks_the_chain(here: Path) -> None:
    path = here / "out/stages/shrink/result.json"
    result = read_sealed(path, ResultForm)
    write_sealed(path, {**result, "seconds": result["seconds"] + 1})
    assert problems(here / "out") == [Problem("stages/shrink/result.json", "changed since the manifest was written")]


def test_a_run_that_would_be_skipped_is_looked_at_all_the_same(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flip_bit(here / "out/stages/train/weights.safetensors", random.Random(1))
    assert main(["run", "--config", "config.yaml", "--output", "out", "--quiet"]) == 5
    changed = "'out/stages/train/weights.safetensors' has changed since stage train wrote it"
    assert capsys.readouterr().err == f"atopipe: {changed}: run again with --from train\n"


def test_an_unchanged_run_does_nothing(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stages = here / "out/stages"
    times = {name: (stages / name).stat().st_mtime_ns for name in files(stages)}
    assert main(["run", "--config", "config.yaml", "--output", "out"]) == 0
    assert capsys.readouterr().out.count("unchanged, skipped") == 7
    assert {name: (stages / name).stat().st_mtime_ns for name in files(stages)} == times


def test_what_is_out_of_date_is_no_damage(here: Path) -> None:
    assert main(["validate", "out", "--force", "--quiet"]) in (0, 3, 4)
    assert problems(here / "out") == []
    assert main(["run", "--config", "config.yaml", "--output", "out", "--no-baseline", "--quiet"]) in (0, 3, 4)
    assert problems(here / "out") == []


def test_a_run_that_was_cut_off_is_no_damage(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("atopipe.pipeline.stages.export._write", interrupt)
    assert main(["run", "--config", "config.yaml", "--output", "out", "--force", "--quiet"]) == 130
    assert problems(here / "out") == []


def test_a_manifest_is_not_compared_with_its_own_run(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--from-manifest", "out/manifest.json", "--output", "out"]) == 2
    said = "--from-manifest 'out/manifest.json' is of the run in 'out' itself: give another --output"
    assert capsys.readouterr().err == f"atopipe: {said}\n"


def test_why_names_what_has_changed(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["why", "out"]) == 0
    assert all(line.endswith("is skipped: unchanged") for line in capsys.readouterr().out.splitlines())
    net = here / "tiny_for_all.py"
    net.write_text(net.read_text() + "\n# another\n")
    assert main(["why", "out", "--json"]) == 0
    steps = json.loads(capsys.readouterr().out)
    assert steps[0] == {"stage": "train", "runs": True, "reasons": ["model code has changed"]}


def test_a_dry_run_says_what_it_would_do_and_does_nothing(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--config", "config.yaml", "--output", "new", "--dry-run", "--until", "shrink"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"{s:<8} runs: not complete yet" for s in ("train", "baseline", "shrink")
    ]
    assert not (here / "new").exists()


def test_from_and_until_choose_the_stages(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chosen = ["run", "--config", "config.yaml", "--output", "out", "--from", "shrink", "--until", "export"]
    assert main(chosen) == 0
    said = capsys.readouterr().out
    assert said.count("unchanged, skipped") == 2
    assert [line.split()[0] for line in said.splitlines()[-2:]] == ["shrink", "export"]
    assert problems(here / "out") == []


@pytest.mark.parametrize("flag", ["--from", "--until"])
def test_an_unknown_stage_is_named(here: Path, capsys: pytest.CaptureFixture[str], flag: str) -> None:
    assert main(["run", "--config", "config.yaml", "--output", "out", flag, "shrnk"]) == 2
    sentence = f"{flag} is shrnk, which is no stage of this run: did you mean shrink?"
    assert capsys.readouterr().err.splitlines()[-1] == f"atopipe: {sentence}"


def test_a_manifest_makes_the_same_run_again(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--from-manifest", "out/manifest.json", "--output", "again"]) == 0
    assert "model.onnx is identical to that of the manifest, byte for byte" in capsys.readouterr().out
    first, second = (json.loads((here / name / "metrics.json").read_text()) for name in ("out", "again"))
    varying = ("time.", "latency.", "memory.")
    assert {k: v for k, v in first.items() if not k.startswith(varying) and not k.startswith("size.bundle")} == {
        k: v for k, v in second.items() if not k.startswith(varying) and not k.startswith("size.bundle")
    }


@pytest.mark.parametrize(
    ("content", "code", "sentence"),
    [
        (None, 2, "--from-manifest 'm.json' cannot be read: No such file or directory"),
        ("{}", 5, "'m.json' is damaged or not the manifest of a run: restore it from a copy of the run"),
    ],
)
def test_a_bad_manifest_is_named(
    here: Path, capsys: pytest.CaptureFixture[str], content: str | None, code: int, sentence: str
) -> None:
    if content is not None:
        (here / "m.json").write_text(content)
    assert main(["run", "--from-manifest", "m.json"]) == code
    assert capsys.readouterr().err == f"atopipe: {sentence}\n"


HOSTILE: dict[str, Callable[[Path], object]] = {
    "pipe": os.mkfifo,
    "folder": Path.mkdir,
    "empty": Path.touch,
    "deep list": lambda path: path.write_text("[" * 100_000),
    "deep object": lambda path: path.write_text('{"a":' * 100_000),
    "long number": lambda path: path.write_text('{"sha256": ' + "9" * 5000 + "}"),
    "no text": lambda path: path.write_bytes(b"\xff\xfe\x00"),
    "broken link": lambda path: path.symlink_to("/nowhere"),
    "circle": lambda path: path.symlink_to(path.name),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_whatever_lies_in_the_place_of_a_record_is_named_damaged(
    here: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    for name, command in {"stages/train/result.json": ["why", "out"], "manifest.json": ["verify", "out"]}.items():
        path = here / "out" / name
        path.unlink()
        HOSTILE[kind](path)
        assert main(command) == 5
        assert f"{name}{chr(39) if command[0] == 'why' else ':'}" in "".join(capsys.readouterr())


def changed_types(content: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The content with one value, or one of a section, of another type or left out."""
    places = [(name,) for name in content]
    places += [(name, inner) for name, value in content.items() if isinstance(value, dict) for inner in value]
    for *above, last in places:
        for value in (None, 3, "x", [[1]], {"a": []}, ...):
            other = copy.deepcopy(content)
            section = other[above[0]] if above else other
            if value is ...:
                del section[last]
            else:
                section[last] = value
            yield other


@pytest.mark.parametrize(
    ("name", "form", "command"),
    [("stages/train/result.json", ResultForm, "why"), ("manifest.json", ManifestForm, "verify")],
)
def test_a_record_with_other_types_is_no_traceback(here: Path, name: str, form: Any, command: str) -> None:
    path = here / "out" / name
    found = read_sealed(path, form)
    for content in changed_types(found):
        write_sealed(path, content)
        assert main([command, "out"]) in (0, 5)


EXTRA: dict[str, Callable[[Path], object]] = {
    "bundle/.evil": Path.touch,
    "bundle/result.json": Path.touch,
    ".evil.py": Path.touch,
    "stages/train/.hidden": Path.touch,
    "tensorboard/evil.py": Path.touch,
    "checkpoints/train/evil.py": Path.touch,
    "bundle/pipe": os.mkfifo,
    "bundle/link": lambda path: path.symlink_to("/usr"),
    "bundle/dangling": lambda path: path.symlink_to("/nowhere"),
}


@pytest.mark.parametrize("name", EXTRA)
def test_only_names_that_a_run_writes_may_be_in_it(here: Path, name: str) -> None:
    path = here / "out" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    EXTRA[name](path)
    assert [problem.file for problem in problems(here / "out")] == [name]


def test_other_line_ends_are_another_file(here: Path) -> None:
    path = here / "out/stages/train/result.json"
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    assert Problem("stages/train/result.json", "changed: it does not match its own digest") in problems(here / "out")
