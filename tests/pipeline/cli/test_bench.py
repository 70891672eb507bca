"""Two ONNX files against each other: figures, verdict, exit code, and what is refused."""

import json
from pathlib import Path

import onnx
import pytest
import torch
from torch import nn

from atopipe.export.onnx import export_onnx
from atopipe.pipeline.cli.main import main


def network(width: int, size: int = 32) -> nn.Module:
    torch.manual_seed(0)
    body = [nn.Conv2d(3, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*body, nn.AvgPool2d(size), nn.Flatten(), nn.Linear(width, 4)).eval()


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with wide.onnx, narrow.onnx, and some that cannot be compared with them."""
    folder = tmp_path_factory.mktemp("bench")
    for name, width, size in (("wide", 64, 32), ("narrow", 8, 32), ("other", 8, 16)):
        export_onnx(network(width, size), torch.zeros(1, 3, size, size), folder / f"{name}.onnx", metadata={})
    broken = onnx.load_model(folder / "narrow.onnx")
    bias = next(tensor for tensor in broken.graph.initializer if tensor.name == "0.bias")
    bias.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(bias) * float("nan"), bias.name))
    onnx.save_model(broken, folder / "nan.onnx")
    for name, axis in (("free", 2), ("fixed", 0)):
        model = onnx.load_model(folder / "narrow.onnx")
        dim = model.graph.input[0].type.tensor_type.shape.dim[axis]
        model.graph.ClearField("value_info")
        if axis:
            dim.dim_param = "height"
        else:
            dim.dim_value = 2
        onnx.save_model(model, folder / f"{name}.onnx")
    newer = onnx.load_model(folder / "narrow.onnx")
    newer.ir_version = 99
    onnx.save_model(newer, folder / "newer.onnx")
    (folder / "text.onnx").write_text("no model")
    return folder


def test_the_narrow_network_is_faster_and_smaller(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pair = [str(models / "wide.onnx"), str(models / "narrow.onnx")]
    code = main(["bench", *pair, "--seconds", "0.5", "--batches", "1,4", "--min-speedup", "1.5", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert (code, found["verdict"]) in ((0, "pass"), (4, "inconclusive"))
    assert [entry["batch"] for entry in found["latency"]] == [1, 4]
    first, second = found["models"]
    assert first["file_bytes"] == (models / "wide.onnx").stat().st_size > second["file_bytes"]
    assert first["load_ms"] > 0 < second["load_ms"]
    assert all(entry["ratio"] is None or entry["ratio"]["estimate"] < 0.7 for entry in found["latency"])


def test_a_model_never_passes_for_faster_than_itself(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pair = [str(models / "wide.onnx")] * 2
    assert main(["bench", *pair, "--seconds", "1", "--min-speedup", "1.05"]) in (3, 4)
    captured = capsys.readouterr()
    assert "p50 at batch 1" in captured.out
    assert captured.err.startswith(("atopipe: fail: latency.speedup", "atopipe: inconclusive: latency.speedup"))


@pytest.mark.parametrize(
    ("second", "code", "words"),
    [
        ("none.onnx", 6, "there is no ONNX model at "),
        ("text.onnx", 6, "is no ONNX model that this ONNX Runtime can load"),
        ("newer.onnx", 6, "is no ONNX model that this ONNX Runtime can load"),
        ("nan.onnx", 6, "gives a non-finite output for a random image"),
        ("free.onnx", 6, "not images [batch, C, H, W] of one size"),
        ("fixed.onnx", 6, "the model takes 2 images at a time only"),
        ("other.onnx", 2, "only models for the same images can be compared"),
    ],
)
def test_what_cannot_be_compared_is_told(
    models: Path, capsys: pytest.CaptureFixture[str], second: str, code: int, words: str
) -> None:
    assert main(["bench", str(models / "narrow.onnx"), str(models / second), "--seconds", "0.1"]) == code
    captured = capsys.readouterr()
    assert words in captured.err
    assert captured.err.count("\n") == 1


def test_batches_are_whole_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "a", "b", "--batches", "1,x"]) == 2
    assert capsys.readouterr().err == "atopipe: --batches is '1,x', but must be whole numbers like 1,8,32\n"


@pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA is usable here")
def test_a_provider_that_is_not_usable_is_refused(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pair = [str(models / "wide.onnx"), str(models / "narrow.onnx")]
    assert main(["bench", *pair, "--provider", "cuda"]) == 5
    said = capsys.readouterr().err
    assert said.startswith("atopipe: the provider 'CUDAExecutionProvider' cannot run the model: ")
    assert said.count("\n") == 1
