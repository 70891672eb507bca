"""The command line: every kind of bad input gets one sentence, no traceback and its exit code."""

import errno
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from atopipe.pipeline.cli.commands import cli
from atopipe.pipeline.cli.main import main
from atopipe.pipeline.cli.settings import configuration
from atopipe.pipeline.system.failures import LEAF_EXIT_CODES, explain

FRACTION = "a fraction like 0.3 or 30% of the dense network's FLOPs, or an amount like 1.2G of FLOPs"

TINY = """
from torch import nn

def net(num_classes):
    def block(i, o):
        return nn.Sequential(nn.Conv2d(i, o, 3, padding=1, stride=2, bias=False), nn.BatchNorm2d(o), nn.ReLU())
    return nn.Sequential(block(3, 16), block(16, 16), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, num_classes))

def nothing_to_prune(num_classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, num_classes))
"""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A separate working directory, without settings from outside."""
    for name in [name for name in os.environ if name.startswith("ATOPIPE_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    return tmp_path


def photos(root: Path, classes: dict[str, tuple[str, ...]]) -> Path:
    """A small image folder: part -> its classes, six images each."""
    for part, names in classes.items():
        for label, name in enumerate(names):
            (root / part / name).mkdir(parents=True)
            for index in range(6):
                Image.new("RGB", (16, 16), (40 * label, 40 * index, 0)).save(root / part / name / f"{index}.png")
    return root


def said(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str]:
    """Exit code and the one line on standard error."""
    code = main(list(argv))
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert "Traceback" not in captured.err
    return code, captured.err.strip()


RUN = ("run", "--model", "resnet18", "--target-flops", "0.3")


@pytest.mark.parametrize(
    ("argv", "code", "sentence"),
    [
        (["rum"], 2, "atopipe: unknown command 'rum': did you mean run?"),
        (["dance"], 2, f"atopipe: unknown command 'dance': choose one of {', '.join(sorted(cli.commands))}"),
        (["run", "--model", "x", "\r"], 2, r"atopipe: Got unexpected extra argument (\r)"),
        (
            ["run", "--modell", "x"],
            2,
            "atopipe: unknown option '--modell': did you mean --model, --model-args or --mlflow?",
        ),
        (
            ["run", "--live-shrnk"],
            2,
            "atopipe: unknown option '--live-shrnk': did you mean --live-shrink or --no-live-shrink?",
        ),
        (["run", "--target-flops", "0.3"], 2, "atopipe: --model is missing: give it, e.g. '--model resnet50'"),
        (["run", "--model", "x"], 2, "atopipe: --target-flops is missing: give it, e.g. '--target-flops 0.3'"),
        (
            ["run", "--model", "x", "--target-flops", "1.5"],
            2,
            f"atopipe: --target-flops is 1.5, but must be {FRACTION}",
        ),
        (["run", "--model", "x", "--target-flops", "0"], 2, f"atopipe: --target-flops is 0, but must be {FRACTION}"),
        ([*RUN, "--epochs", "0"], 2, "atopipe: --epochs is 0, but must be 1 or more"),
        ([*RUN, "--align", "x"], 2, "atopipe: --align is x, but must be auto or a whole number of channels"),
        ([*RUN, "--align", "2.5"], 2, "atopipe: --align is 2.5, but must be auto or a whole number of channels"),
        ([*RUN, "--recipe", "qick"], 2, "atopipe: unknown recipe 'qick': did you mean quick?"),
        ([*RUN, "--device", "tpu"], 2, "atopipe: --device is tpu, but must be 'auto', 'cpu' or 'cuda'"),
        (
            [*RUN, "--config", "none.yaml"],
            2,
            "atopipe: configuration file 'none.yaml' cannot be read: No such file or directory",
        ),
        (
            ["shrink", "nowhere"],
            2,
            "atopipe: 'nowhere' is not a run of atopipe: give the folder that 'atopipe run' or 'atopipe train' wrote",
        ),
    ],
)
def test_bad_options(capsys: pytest.CaptureFixture[str], argv: list[str], code: int, sentence: str) -> None:
    assert said(capsys, *argv) == (code, sentence)


@pytest.mark.parametrize("command", ["run", "train", "inspect"])
def test_an_unknown_model_is_told_its_nearest_names(capsys: pytest.CaptureFixture[str], command: str) -> None:
    code, line = said(capsys, command, "--model", "resnet5", "--target-flops", "0.3", *quiet(command))
    assert code == 2
    assert re.fullmatch(r"atopipe: unknown model 'resnet5': did you mean resnet56, resnet50 or .*\?", line)


def test_an_unknown_model_is_told_before_the_images_are_read(capsys: pytest.CaptureFixture[str]) -> None:
    argv = ("run", "--model", "resnet5", "--target-flops", "0.3", "--data", "imagefolder:none", "--quiet")
    assert said(capsys, *argv)[1].startswith("atopipe: unknown model 'resnet5'")


def quiet(command: str) -> list[str]:
    return [] if command == "inspect" else ["--quiet", "--output", "out"]


@pytest.mark.parametrize(
    ("make", "source", "code", "sentence"),
    [
        (lambda root: None, "imagefolder:none", 5, "data folder 'none' does not exist: "),
        (lambda root: (root / "empty").mkdir(), "imagefolder:empty", 5, "data folder 'empty' is empty: "),
        (
            lambda root: photos(root / "p", {"train": ("a", "b")}),
            "imagefolder:p",
            5,
            "data folder 'p' has neither val nor test: ",
        ),
        (
            lambda root: photos(root / "p", {"train": ("a", "b"), "val": ("a", "c")}),
            "imagefolder:p",
            2,
            "the classes differ: ",
        ),
        (
            lambda root: photos(root / "p", {"train": ("a",), "val": ("a",)}),
            "imagefolder:p",
            2,
            "'p/train' has the single class a: a classifier needs two or more",
        ),
        (
            lambda root: (root / "c").mkdir() or (root / "c/cifar-100-binary.tar.gz").touch(),
            "cifar10:c",
            2,
            "'c' holds CIFAR-100, not CIFAR-10: did you mean cifar100:c?",
        ),
        (lambda root: None, "digit", 2, "unknown data source 'digit': did you mean digits?"),
    ],
    ids=["missing", "empty", "no val", "classes", "one class", "wrong archive", "unknown"],
)
def test_bad_data(capsys, here, make, source, code, sentence) -> None:  # type: ignore[no-untyped-def]
    make(here)
    got, line = said(capsys, *RUN, "--data", source, "--quiet")
    assert got == code
    assert line.startswith(f"atopipe: {sentence}")


def test_an_unreadable_image_is_named(capsys: pytest.CaptureFixture[str], here: Path) -> None:
    folder = photos(here / "p", {"train": ("a", "b"), "val": ("a", "b")})
    (folder / "train/b/3.png").write_bytes(b"no image")
    code, line = said(capsys, *RUN, "--data", "imagefolder:p", "--quiet")
    assert code == 2
    assert "p/train/b/3.png" in line


def test_a_target_out_of_reach_is_refused_before_training(capsys: pytest.CaptureFixture[str], here: Path) -> None:
    (here / "tiny_for_reach.py").write_text(TINY)
    argv = ("run", "--model", "tiny_for_reach:net", "--target-flops", "0.001", "--output", "out", "--quiet")
    code, line = said(capsys, *argv)
    assert code == 2
    assert re.match(
        r"atopipe: target 0\.001 \([\d,]+ FLOPs\) cannot be reached: .* "
        r"the network keeps from 0\.\d+ \([\d,]+\) to 1 of its FLOPs; ",
        line,
    )
    assert "epoch" not in (here / "out/events.jsonl").read_text()
    assert not list((here / "out/stages").iterdir())


def test_too_large_a_batch_is_refused_before_the_network_is_traced(
    capsys: pytest.CaptureFixture[str], here: Path
) -> None:
    (here / "tiny_for_batch.py").write_text(TINY)
    argv = ("run", "--model", "tiny_for_batch:nothing_to_prune", "--target-flops", "0.5", "--batch-size", "2000")
    limit = "the training set of 1,437 images: lower --batch-size to 1437 or less"
    assert said(capsys, *argv, "--quiet") == (2, f"atopipe: batch size 2000 is larger than {limit}")


def test_a_network_for_grey_images_is_refused_and_told_what_it_was_given(
    capsys: pytest.CaptureFixture[str], here: Path
) -> None:
    """Grey images are no trouble in a network for RGB: every source repeats the one channel."""
    (here / "tiny_grey.py").write_text(TINY.replace("block(3, 16)", "block(1, 16)"))
    code, line = said(capsys, "run", "--model", "tiny_grey:net", "--target-flops", "0.5", "--quiet")
    assert code == 2
    assert "takes images of 1 channel, and every image is given as RGB: build it for 3 channels" in line


def test_a_network_without_groups_is_refused(capsys: pytest.CaptureFixture[str], here: Path) -> None:
    (here / "tiny_without.py").write_text(TINY)
    code, _ = said(capsys, "inspect", "--model", "tiny_without:nothing_to_prune")
    assert code == 2


def test_another_configurations_folder_is_refused(capsys: pytest.CaptureFixture[str], here: Path) -> None:
    argv = ("--model", "none:net", "--output", "out", "--quiet")
    said(capsys, "run", "--target-flops", "0.3", *argv)
    (here / "out/stages/train").mkdir(parents=True)
    code, line = said(capsys, "run", "--target-flops", "0.4", *argv)
    remedy = "choose another --output, --update to change its settings, or --force to replace it"
    assert (code, line) == (2, f"atopipe: output 'out' belongs to another configuration: {remedy}")


def test_an_output_that_cannot_be_written_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    Path("file").touch()
    words = "output 'file/out' cannot be made: Not a directory: choose another --output"
    assert said(capsys, *RUN, "--output", "file/out") == (5, f"atopipe: {words}")


def test_environment_variables_stand_between_file_and_flags(
    capsys: pytest.CaptureFixture[str], here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (here / "a.yaml").write_text("model: resnet18\ntarget_flops: 0.3\nseed: -1\n")
    monkeypatch.setenv("ATOPIPE_CONFIG", "a.yaml")
    assert said(capsys, "run")[1].startswith("atopipe: --seed is -1,")
    monkeypatch.setenv("ATOPIPE_SEED", "-2")
    assert said(capsys, "run")[1].startswith("atopipe: --seed is -2,")
    assert said(capsys, "run", "--seed", "-3")[1].startswith("atopipe: --seed is -3,")


@pytest.mark.parametrize(
    ("variable", "argv", "wanted"),
    [
        ("", (), (True, False)),
        ("", ("--no-live-shrink", "--compile"), (False, True)),
        ("false", (), (False, False)),
        ("false", ("--live-shrink",), (True, False)),
    ],
)
def test_a_switch_is_on_or_off_or_as_the_recipe_says(
    monkeypatch: pytest.MonkeyPatch, variable: str, argv: tuple[str, ...], wanted: tuple[bool, bool]
) -> None:
    if variable:
        monkeypatch.setenv("ATOPIPE_LIVE_SHRINK", variable)
    options = cli.commands["inspect"].make_context("inspect", ["--model", "m", *argv]).params
    del options["as_json"]
    recipe = configuration({**options, "target_flops": "0.3"}).recipe
    assert (recipe.live_shrink, recipe.compile) == wanted


@pytest.mark.parametrize(
    "command", ["run", "train", "shrink", "export", "validate", "bundle", "report", "bench", "inspect"]
)
def test_every_command_has_help_with_an_example(capsys: pytest.CaptureFixture[str], command: str) -> None:
    assert main([command, "--help"]) == 0
    assert f"Example:  atopipe {command}" in capsys.readouterr().out


def test_help_reads_the_target_both_ways(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--help"]) == 0
    words = " ".join(capsys.readouterr().out.split())
    assert "0.3 or 30%: keep at most 30 % of the dense network's FLOPs, prune 70 %; " in words


def test_every_leaf_error_exists_and_is_mapped() -> None:
    import importlib

    for name, code in LEAF_EXIT_CODES.items():
        module, _, attribute = name.rpartition(".")
        kind = getattr(importlib.import_module(module), attribute)
        failure = explain(kind("a sentence"))
        assert failure is not None
        assert (failure.message, failure.exit_code) == ("a sentence", code)


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (
            OSError(errno.ENOSPC, "No space left on device"),
            5,
            r"no space left in '.*' \(\d+\.\d MB free\): free some, .*",
        ),
        (PermissionError(errno.EACCES, "Permission denied", "x"), 5, r"'x' cannot be used \(Permission denied\): .*"),
        (MemoryError(), 5, r"out of memory: \d+\.\d GB are free: lower --batch-size or data.input_size"),
        (
            torch.OutOfMemoryError(
                "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 4.00 GiB of which "
                "512.00 MiB is free."
            ),
            5,
            "out of memory: 2.1 GB more were requested and 0.5 GB are free: lower --batch-size or data.input_size",
        ),
        (
            shutil.Error([("a", "b", "[Errno 28] No space left on device")]),
            5,
            r"no space left in '.*' \(\d+\.\d MB free\): free some, .*",
        ),
        (OSError(errno.EFBIG, "File too large"), 5, r"a file in '.*' would be larger than .*: raise ulimit -f"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), 5, r"the quota of disk space is used up in '.*': free some, .*"),
        (
            FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/tmp']"),
            5,
            "no folder for temporary files can be written: free some space there, or set TMPDIR to another",
        ),
        (KeyboardInterrupt(), 130, "interrupted: complete stages stay usable"),
    ],
    ids=[
        "disk full",
        "permission",
        "memory",
        "memory of a GPU",
        "copied tree",
        "file size",
        "quota",
        "temporary",
        "ctrl-c",
    ],
)
def test_errors_of_the_machine_are_explained(error: BaseException, code: int, words: str) -> None:
    failure = explain(error)
    assert failure is not None
    assert failure.exit_code == code
    assert re.fullmatch(words, failure.message)


@pytest.mark.parametrize(
    ("full", "blocks", "files", "words"),
    [
        ("run", 0, 9, "no space left in '{run}' ({free} MB free): free some, or choose another --output"),
        ("run", 10**6, 0, "no inodes left in '{run}' for more files: remove some, or choose another --output"),
        ("tmp", 0, 9, "no space left in '{tmp}' ({free} MB free): free some, or set TMPDIR to another folder"),
        ("tmp", 10**6, 0, "no inodes left in '{tmp}' for more files: remove some, or set TMPDIR to another folder"),
    ],
)
def test_what_is_used_up_is_told_by_where_and_what(
    full: str, blocks: int, files: int, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = {name: tmp_path / name for name in ("run", "tmp")}
    for place in places.values():
        place.mkdir()

    def statvfs(path: Path) -> SimpleNamespace:
        is_full = Path(path) == places[full]
        found = {"f_bavail": blocks, "f_favail": files} if is_full else {"f_bavail": 10**6, "f_favail": 9}
        return SimpleNamespace(f_frsize=4096, f_files=10, **found)

    monkeypatch.setattr(os, "statvfs", statvfs)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=4096 * statvfs(path).f_bavail))
    monkeypatch.setattr(tempfile, "tempdir", str(places["tmp"]))
    failure = explain(OSError(errno.ENOSPC, "No space left on device"), places["run"])
    assert failure is not None
    assert failure.message == words.format(**places, free=f"{4096 * blocks / 1e6:.1f}")


def test_torchs_own_want_of_memory_is_explained() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(10**15)
    failure = explain(caught.value)
    assert failure is not None
    words = r"out of memory: 4000000\.0 GB more were requested and \d+\.\d GB are free: lower --batch-size .*"
    assert re.fullmatch(words, failure.message)
    assert failure.exit_code == 5


def test_a_defect_is_not_explained_away() -> None:
    assert explain(RuntimeError("a defect")) is None
    assert explain(FileNotFoundError(errno.ENOENT, "No such file", "x")) is None


def test_the_process_ends_with_the_code_and_the_sentence() -> None:
    command = [sys.executable, "-m", "atopipe.pipeline", *RUN[:3], "--target-flops", "2"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"atopipe: --target-flops is 2, but must be {FRACTION}\n"
