"""The Python entrance: what it returns, what it leaves alone, and that it works in any thread."""

import json
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save

import atopipe
from atopipe.pipeline import Outcome, Selection, load_config, load_shrunk, run, verify
from atopipe.pipeline.api import select
from atopipe.pipeline.rundir.lock import locked
from atopipe.pipeline.system.errors import MissingError, UsageError
from atopipe.pipeline.system.failures import explain
from atopipe.pipeline.system.files import SEAL, sha256_file, write_sealed
from atopipe.validate.session import open_session


@pytest.fixture
def here(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the finished run, with its network's module in the working directory."""
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_run_in_a_thread_gives_its_outcome_and_leaves_the_process_as_it_was(
    here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """As schedulers of trials and notebooks call it: a failed gate is a value, nothing is printed or kept."""
    config = load_config(here / "config.yaml", {"gates.min_accuracy": 0.999, "threads": 2})
    threads, handlers = torch.get_num_threads(), [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    with ThreadPoolExecutor(1) as pool:
        outcome = pool.submit(run, config, here / "out", stages=Selection(first="validate")).result()
    assert isinstance(outcome, Outcome)
    assert not outcome.passed
    assert [verdict.name for verdict in outcome.verdicts if verdict.outcome == "fail"] == ["accuracy.onnx"]
    assert 0 < outcome.metrics["flops.ratio"] <= 0.6
    assert outcome.metrics["accuracy.onnx"] < 0.999
    assert torch.get_num_threads() == threads
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert capfd.readouterr() == ("", "")
    assert verify(outcome.directory) == []


def test_the_shrunk_network_is_loaded_as_a_module_that_computes_what_the_file_does(here: Path) -> None:
    model = load_shrunk(here / "out")
    images = np.random.default_rng(0).normal(size=(5, 3, 32, 32)).astype(np.float32)
    session = open_session(here / "out/stages/export/model.onnx")
    images = images[:, :, : session.input_shape()[1], : session.input_shape()[2]]
    with torch.no_grad():
        np.testing.assert_allclose(model(torch.from_numpy(images)).numpy(), session.run(images), rtol=1e-4, atol=1e-5)
    assert not model.training


def test_a_run_that_is_in_use_or_is_none_is_refused(here: Path) -> None:
    config = load_config(here / "config.yaml")
    with locked(here / "out"), pytest.raises(MissingError, match="is in use by process"):
        run(config, here / "out")
    with pytest.raises(UsageError, match=r"^there is no tracker 'mlflw': did you mean mlflow\?$"):
        run(config, here / "out", trackers=["mlflw"])
    with pytest.raises(UsageError, match="is not a run of atopipe"):
        load_shrunk(here / "out/stages")


@pytest.mark.parametrize(
    ("selection", "sentence"),
    [
        (
            Selection(first="validate", last="export"),
            "--until is export, which comes before --from validate: swap them",
        ),
        (Selection(first="shrnk"), "--from is shrnk, which is no stage of this run: did you mean shrink?"),
        (Selection(names=("trian",)), "there is no stage 'trian': did you mean train?"),
        (Selection(names=("quantize",)), "this run has no stage quantize: add '--variants fp32,fp16,int8'"),
        (Selection(names=("export",), last="train"), "--until is train, which comes before all that is to be done"),
    ],
)
def test_a_selection_that_selects_nothing_is_refused(selection: Selection, sentence: str) -> None:
    config = load_config(None, {"model.name": "resnet18", "target_flops": 0.3})
    with pytest.raises(UsageError) as caught:
        select(config, selection, force=False)
    assert str(caught.value).startswith(sentence)


def test_the_example_of_the_page_works(here: Path, finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Word for word, on the configuration of a tiny network."""
    page = (Path(__file__).parents[2] / "docs/how-to/python.md").read_text(encoding="utf-8")
    example = page.partition("```python\n")[2].partition("```")[0]
    shutil.copyfile(finished / "config.yaml", here / "tiny.yaml")
    exec(compile(example, "python.md", "exec"), {})  # noqa: S102
    words = capsys.readouterr().out.splitlines()
    assert words[0].startswith("0.")
    assert any(line.startswith("lossless.max_rel_diff pass ") for line in words)


def test_the_names_are_there_and_cost_nothing_until_they_are_asked_for() -> None:
    code = (
        "import sys, atopipe, atopipe.pipeline\n"
        "light = len(sys.modules)\n"
        "names = [getattr(atopipe.pipeline, name) for name in atopipe.pipeline.__all__ for _ in range(2)]\n"
        "print('torch' in sys.modules, light < 200, all(map(callable, names)), atopipe.__version__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.split()[:3] == ["False", "True", "True"]
    assert done.stdout.split()[3] == atopipe.__version__
    with pytest.raises(AttributeError, match="has no attribute 'runn'"):
        _ = atopipe.pipeline.runn  # type: ignore[attr-defined]


def resealed(run: Path, stage: str, name: str, content: bytes) -> None:
    """Writes a file of a stage, and its digest into the record, as an attacker would."""
    path = run / "stages" / stage / name
    path.write_bytes(content)
    record = json.loads((path.parent / "result.json").read_text())
    record["artifacts"][name] = sha256_file(path)
    del record[SEAL]
    write_sealed(path.parent / "result.json", record)


SHAPED = save({"1": torch.zeros(3)})
HOSTILE = (
    ("structure.json", b"{}", "this is not a structure file (KeyError: 'kept')"),
    ("structure.json", b"\xff", "this is not a structure file (JSONDecodeError: "),
    ("structure.json", b'{"kept": {}}', "does not say how many classes there are: run again with --from shrink"),
    ("structure.json", b'{"kept": {}, "classes": true}', "does not say how many classes there are"),
    ("structure.json", b'{"kept": {}, "classes": 1e99}', "does not say how many classes there are"),
    (
        "structure.json",
        b'{"kept": {}, "classes": 10}',
        "does not hold the weights of the network: run again with --from shr",
    ),
    (
        "structure.json",
        b'{"kept": {"none": {"out": [0]}}, "classes": 10}',
        "layer 'none' of the structure is not in the",
    ),
    ("weights.safetensors", b"", "is damaged ("),
    ("weights.safetensors", b"\xff" * 100, "is damaged ("),
    ("weights.safetensors", SHAPED, "does not hold the weights of the network: run again with --from shrink"),
    ("weights.safetensors", save({"1": torch.full((3,), float("nan"))}), "has values in '1' that are not finite"),
)


@pytest.mark.parametrize(("name", "content", "words"), HOSTILE, ids=range(len(HOSTILE)))
def test_files_of_a_run_that_somebody_else_wrote_are_refused(here: Path, name: str, content: bytes, words: str) -> None:
    resealed(here / "out", "shrink", name, content)
    with pytest.raises(Exception) as caught:
        load_shrunk(here / "out")
    failure = explain(caught.value)
    assert failure is not None
    assert words in failure.message
    assert failure.exit_code in (5, 6)
