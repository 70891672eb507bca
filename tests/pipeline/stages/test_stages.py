"""All stages on a tiny network and real data: the files each leaves, what they say, and that they belong together."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from safetensors.torch import load_file

from atopipe.pipeline.cli.main import main
from atopipe.pipeline.config.load import load_config
from atopipe.pipeline.report.verdicts import failure, verdicts_of
from atopipe.pipeline.rundir.directory import RunDirectory
from atopipe.pipeline.stages import STAGES
from atopipe.pipeline.system.errors import GateFailed, Inconclusive, ParityGateFailed
from atopipe.pipeline.system.files import sha256_file
from atopipe.validate.session import open_session

NET = """
from torch import nn

class Net(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, stride=2, padding=1), nn.BatchNorm2d(16), nn.ReLU())
        self.block = nn.Sequential(
            nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(),
            nn.Conv2d(32, 16, 3, padding=1), nn.BatchNorm2d(16),
        )
        self.head = nn.Sequential(nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(256, num_classes))

    def forward(self, images):
        features = self.stem(images)
        return self.head(features + self.block(features))
"""
CONFIG = """
model: tiny_for_stages:Net
target_flops: 0.5
recipe: {epochs: 3, batch_size: 128, align: 1}
validation: {latency_s: 0.2}
threads: 1
device: cpu
"""
BUNDLE = (
    *("model.onnx", "labels.txt", "preprocess.json", "MODEL_CARD.md", "manifest.json", "SHA256SUMS"),
    *("infer.py", "checks.py", "network.py", "pictures.py"),
    *("samples/samples.npz", "test_data_set_0/input_0.pb", "test_data_set_0/output_0.pb"),
)
CHAIN = [stage.name for stage in STAGES if stage.name not in ("profile", "search", "baseline", "quantize")]
METRICS = {
    *("flops.dense", "flops.shrunk", "flops.ratio", "params.dense", "params.shrunk", "params.ratio"),
    *("accuracy.masked", "accuracy.shrunk", "accuracy.onnx", "lossless.max_rel_diff", "parity.max_abs_diff"),
    *("size.dense_bytes", "size.shrunk_bytes", "memory.peak_bytes", "time.train_s", "time.total_s"),
}


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with the network, its configuration, and one complete run of it in `out`."""
    folder, before, path = tmp_path_factory.mktemp("work"), Path.cwd(), sys.path.copy()
    (folder / "tiny_for_stages.py").write_text(NET)
    (folder / "config.yaml").write_text(CONFIG)
    os.chdir(folder)
    assert main(["run", "--config", "config.yaml", "--output", "out", "--quiet"]) == 0
    yield folder
    os.chdir(before)
    sys.path[:] = path


@pytest.fixture(scope="module")
def metrics(work: Path) -> dict[str, float]:
    found: dict[str, float] = json.loads((work / "out/metrics.json").read_text())
    return found


def test_each_stage_leaves_its_files_and_nothing_partial(work: Path) -> None:
    left = {path.relative_to(work / "out").as_posix() for path in (work / "out").rglob("*") if path.is_file()}
    assert left == {
        *("config.yaml", "events.jsonl", "manifest.json", "metrics.json", "summary.md", "junit.xml", "report.html"),
        *("inputs.json", ".lock"),
        *(
            f"stages/train/{name}"
            for name in (
                "weights.safetensors",
                "groups.json",
                "masks.safetensors",
                "data.json",
                "history.json",
                "execution.json",
                "result.json",
            )
        ),
        *(f"stages/shrink/{name}" for name in ("structure.json", "weights.safetensors", "result.json")),
        *(
            f"stages/export/{name}"
            for name in ("model.onnx", "dense.onnx", "layers.json", "structure.json", "result.json")
        ),
        *(f"stages/validate/{name}" for name in ("gates.json", "parity.json", "flips.json", "result.json")),
        *(f"stages/validate/{name}" for name in ("answers.safetensors", "examples.safetensors")),
        *(f"bundle/{name}" for name in BUNDLE),
        *(f"stages/bundle/bundle/{name}" for name in BUNDLE),
        *("bundle.zip", "stages/bundle/bundle.zip", "stages/bundle/result.json"),
        *(f"stages/report/{name}" for name in ("summary.md", "junit.xml", "report.html", "result.json")),
    }


def test_metrics_are_flat_numbers_that_agree_with_each_other(work: Path, metrics: dict[str, float]) -> None:
    assert set(metrics) >= METRICS
    assert all(isinstance(value, int | float) for value in metrics.values())
    assert metrics["flops.ratio"] == metrics["flops.shrunk"] / metrics["flops.dense"] <= 0.5
    assert metrics["accuracy.masked"] == pytest.approx(metrics["accuracy.shrunk"], abs=1.5 / 360)
    assert metrics["lossless.max_rel_diff"] <= 1e-10
    assert metrics["size.shrunk_bytes"] == (work / "out/stages/export/model.onnx").stat().st_size
    parts = sum(metrics[f"time.{name}_s"] for name in CHAIN)
    assert metrics["time.total_s"] == pytest.approx(parts)


def test_the_layers_cost_what_the_network_costs(work: Path, metrics: dict[str, float]) -> None:
    layers = json.loads((work / "out/stages/export/layers.json").read_text())
    assert [layer["name"] for layer in layers] == ["stem.0", "block.0", "block.3", "head.3"]
    for network in ("dense", "shrunk"):
        assert sum(layer[network] for layer in layers) == metrics[f"flops.{network}"]


def test_the_structure_is_that_of_the_files(work: Path, metrics: dict[str, float]) -> None:
    structure = json.loads((work / "out/stages/export/structure.json").read_text())
    assert sorted(structure) == ["dense.onnx", "model.onnx"]
    for name, told in structure.items():
        assert told["sha256"] == sha256_file(work / "out/stages/export" / name)
        assert (told["opset"], told["ir_version"], told["runtime"]) == (18, 8, "1.14")
    assert structure["model.onnx"]["bytes"] == metrics["size.shrunk_bytes"]


def test_the_delivered_file_reaches_the_recorded_accuracy_on_its_own(work: Path, metrics: dict[str, float]) -> None:
    from atopipe.pipeline.data.load import load_data

    session = open_session(work / "out/stages/export/model.onnx")
    data = load_data("digits", seed=0)
    right = [session.run(x.numpy()).argmax(1) == y.numpy() for x, y in data.val.batches(50, device="cpu")]
    assert np.concatenate(right).mean() == metrics["accuracy.onnx"] > 0.5
    assert json.loads(session.metadata["labels"]) == list(data.labels)


def test_masked_groups_are_exactly_zero_in_the_dense_weights(work: Path) -> None:
    weights = load_file(work / "out/stages/train/weights.safetensors")
    masks = load_file(work / "out/stages/train/masks.safetensors")
    removed = {name: ~mask for name, mask in masks.items() if (~mask).any()}
    assert removed
    for name, gone in removed.items():
        assert not weights[f"{name}.weight"][gone].any()


def test_the_manifest_holds_the_digest_of_every_artifact(work: Path) -> None:
    manifest = json.loads((work / "out/manifest.json").read_text())
    assert [stage["stage"] for stage in manifest["stages"]] == CHAIN
    for stage in manifest["stages"]:
        for name, digest in stage["artifacts"].items():
            assert sha256_file(work / "out/stages" / stage["stage"] / name) == digest


def test_the_manifest_says_how_the_network_was_trained(work: Path) -> None:
    execution = json.loads((work / "out/manifest.json").read_text())["execution"]["train"]
    assert execution["precision"] in ("float32", "bfloat16")
    del execution["precision"]  # depends on the processor
    assert execution == {
        "device": "cpu",
        "threads": 1,
        "memory_format": "channels_last",
        "compiled": False,
        "processes": 1,
    }


def test_a_finished_run_does_nothing_again(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in (work / "out/stages").rglob("*")}
    assert main(["run", "--config", "config.yaml", "--output", "out", "--json"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out) == json.loads((work / "out/metrics.json").read_text())
    assert captured.err.count("unchanged, skipped") == len(CHAIN)
    assert "keep at most 50 %, prune 50 %" in captured.err
    assert {path: path.stat().st_mtime_ns for path in (work / "out/stages").rglob("*")} == before


def test_a_baseline_can_be_asked_for_later(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Same weights, order and steps as the pruning run, which in its first epoch does nothing to the weights."""
    shutil.copytree(work / "out", work / "compared")
    again = ["run", "--config", "config.yaml", "--output", "compared"]
    assert main([*again, "--baseline", "--max-accuracy-drop", "1"]) == 0
    shown = capsys.readouterr().out
    assert shown.count("unchanged, skipped") == len(CHAIN) - 4  # dense.onnx has other weights
    metrics = json.loads((work / "compared/metrics.json").read_text())
    dense, pruned = (
        json.loads((work / f"compared/stages/{stage}/history.json").read_text()) for stage in ("baseline", "train")
    )
    assert dense[0]["loss"] == pruned[0]["loss"]
    assert [record["kept"] for record in dense] == [{}] * 3
    assert [sorted(record["kept"]) for record in pruned] == [["flops"]] * 3
    assert metrics["accuracy.dense"] == pytest.approx(dense[-1]["val_accuracy"], abs=1.5 / 360)
    assert metrics["time.dense_epochs_s"] <= metrics["time.baseline_s"]
    difference = f"{100 * (metrics['accuracy.onnx'] - metrics['accuracy.dense']):+.2f} points"
    for text in (shown, (work / "compared/summary.md").read_text()):
        assert difference in text
        assert "training time" in text
    flips = json.loads((work / "compared/stages/validate/flips.json").read_text())["dense_to_onnx"]
    assert metrics["accuracy.drop"] == pytest.approx(metrics["accuracy.dense"] - metrics["accuracy.onnx"])
    assert metrics["accuracy.drop"] == (flips["lost"] - flips["gained"]) / 360
    assert metrics["accuracy.drop_low"] < metrics["accuracy.drop"] < metrics["accuracy.drop_high"]
    assert main([*again, "--quiet"]) == 0
    assert "points" not in (work / "compared/summary.md").read_text()
    assert "accuracy.dense" not in json.loads((work / "compared/metrics.json").read_text())


@pytest.mark.parametrize("recipe", ["cifar", "imagenet"])
def test_a_long_recipe_can_be_tried_on_few_images(work: Path, recipe: str) -> None:
    few = ["--epochs", "4", "--batch-size", "128", "--align", "1", "--device", "cpu", "--threads", "1", "--quiet"]
    model = ["--model", "tiny_for_stages:Net", "--target-flops", "0.5", "--recipe", recipe]
    assert main(["train", *model, *few, "--output", recipe]) == 0
    history = json.loads((work / recipe / "stages/train/history.json").read_text())
    phases = [record["phase"] for record in history]
    assert (phases[0], phases[-1]) == ("dense", "small")
    assert history[-1]["kept"]["flops"] <= 0.5


def test_a_stage_alone_gives_the_same_bytes(work: Path) -> None:
    shrunk, model = work / "out/stages/shrink/weights.safetensors", work / "out/stages/export/model.onnx"
    before = sha256_file(shrunk), sha256_file(model)
    assert main(["shrink", "out", "--force", "--quiet"]) == 0
    assert main(["export", "out", "--force", "--quiet"]) == 0
    assert (sha256_file(shrunk), sha256_file(model)) == before


def test_a_tampered_artifact_stops_the_stage_that_reads_it(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = work / "out/stages/train/weights.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    try:
        assert main(["shrink", "out", "--force", "--quiet"]) == 5
    finally:
        path.write_bytes(content)
    sentence = (
        "'out/stages/train/weights.safetensors' has changed since stage train wrote it: run again with --from train"
    )
    assert capsys.readouterr().err == f"atopipe: {sentence}\n"


def test_inspect_tells_what_can_be_pruned_and_how_far(
    work: Path, metrics: dict[str, float], capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["inspect", "--model", "tiny_for_stages:Net", "--threads", "1"]
    assert main([*arguments, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert sorted(group["size"] for group in found["sets"]) == [16, 32]
    assert [(whole["name"], whole["size"]) for whole in found["unprunable"]] == [("head.3", 10)]
    assert (found["flops"], found["params"]) == (metrics["flops.dense"], metrics["params.dense"])
    assert 0 < found["minimum_flops"] < metrics["flops.ratio"]
    assert main(arguments) == 0
    text = capsys.readouterr().out
    assert "head.3 (10 channels) is not pruned: " in text
    assert f"reachable: {found['minimum_flops']:.4f} of the FLOPs, " in text


@pytest.mark.parametrize(
    ("limits", "code", "words"),
    [
        (["--min-accuracy", "0.3", "--max-size-mb", "1"], 0, ""),
        (["--min-accuracy", "1"], 3, "gate failed: accuracy.onnx = "),
        (["--max-size-mb", "0.001"], 3, "gate failed: size.shrunk_mb = "),
        (["--max-latency-ms", "0.0000001"], {3, 4}, "latency.shrunk_p50_ms = "),
        (["--min-speedup", "1000"], {3, 4}, "latency.speedup = "),
        (
            ["--max-accuracy-drop", "0.1"],
            2,
            "atopipe: --max-accuracy-drop compares with the dense network's accuracy: ",
        ),
    ],
)
def test_a_finished_run_can_be_judged_by_other_limits(
    work: Path, capsys: pytest.CaptureFixture[str], limits: list[str], code: int | set[int], words: str
) -> None:
    shutil.rmtree(work / "judged", ignore_errors=True)
    shutil.copytree(work / "out", work / "judged")
    got = main(["validate", "judged", *limits, "--quiet"])
    assert got in (code if isinstance(code, set) else {code})
    assert words in capsys.readouterr().err


def test_the_gates_of_a_run_reach_the_build_server(
    work: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(work / "out", work / "built")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(work / "step.md"))
    limits = ["--max-size-mb", "0.001", "--min-accuracy", "0.3"]
    assert main(["run", "--config", "config.yaml", "--output", "built", *limits, "--quiet"]) == 3
    size = json.loads((work / "built/metrics.json").read_text())["size.shrunk_bytes"]
    assert capsys.readouterr().err == f"atopipe: gate failed: size.shrunk_mb = {size / 1e6:.6g} is not at most 0.001\n"
    gates = json.loads((work / "built/stages/validate/gates.json").read_text())
    suite = ElementTree.parse(work / "built/junit.xml").getroot()[0]  # noqa: S314 - our own file
    assert [case.get("name") for case in suite] == [gate["name"] for gate in gates]
    assert (suite.get("failures"), suite.get("errors")) == ("1", "0")
    assert [case.get("name") for case in suite if case.find("failure") is not None] == ["size.shrunk_mb"]
    assert (work / "step.md").read_text() == (work / "built/summary.md").read_text() + "\n"


@pytest.mark.parametrize(
    ("gates", "kind", "sentence"),
    [
        ({"flops.ratio": "fail"}, GateFailed, "gate failed: flops.ratio is bad"),
        (
            {"flops.ratio": "fail", "parity.max_rel_diff": "fail"},
            ParityGateFailed,
            "the delivered model is not the trained one: parity.max_rel_diff is bad",
        ),
        ({"speed": "inconclusive"}, Inconclusive, "inconclusive: speed is bad: measure again with 'atopipe validate "),
        (
            {"accuracy.drop": "inconclusive"},
            Inconclusive,
            "inconclusive: accuracy.drop is bad: more validation images would narrow the interval",
        ),
    ],
)
def test_gates_decide_the_exit_code(
    tmp_path: Path, gates: dict[str, str], kind: type[GateFailed | Inconclusive], sentence: str
) -> None:
    run = RunDirectory.create(tmp_path / "run", load_config(None, {"model.name": "m", "target_flops": 0.5}))
    validate = next(stage for stage in STAGES if stage.name == "validate")
    content = [{"name": name, "outcome": outcome, "reason": f"{name} is bad"} for name, outcome in gates.items()]
    with run.stages.writing(validate) as attempt:
        (attempt.folder / "gates.json").write_text(json.dumps(content))
    error = failure(verdicts_of(run), run.root)
    assert type(error) is kind
    assert str(error).startswith(sentence)


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_ctrl_c_ends_with_130_and_one_sentence(work: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "atopipe.pipeline",
        "run",
        "--config",
        "config.yaml",
        "--output",
        "cut",
        "--epochs",
        "500",
    ]
    process = subprocess.Popen(command, cwd=work, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    events, end = work / "cut/events.jsonl", time.monotonic() + 60
    while not (events.exists() and '"epoch"' in events.read_text()) and time.monotonic() < end:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=30)
    assert process.returncode == 130
    assert error == "atopipe: interrupted in stage train: complete stages in 'cut' stay usable, run again to resume\n"
    assert not list((work / "cut/stages").iterdir())
