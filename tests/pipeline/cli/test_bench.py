"""Two ONNX files against each other: figures, verdict, exit code, and what is refused."""

import json
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
import torch
from torch import nn

from atopipe.export.onnx import export_onnx
from atopipe.pipeline.cli.main import main
from atopipe.validate import footprint


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


@pytest.mark.parametrize(
    "batches", ["1,x", "", "0", "-1", "1,", "5000", "9" * 5000, "1.5", "\u0661"], ids=lambda b: b[:5]
)
def test_batches_are_whole_numbers(batches: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "a", "b", f"--batches={batches}"]) == 2
    remedy = "but must be whole numbers from 1 to 4096 like 1,8,32"
    assert capsys.readouterr().err == f"atopipe: --batches is '{batches}', {remedy}\n"


@pytest.mark.parametrize("option", ["--seconds", "--min-speedup"])
@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "-1", "0", "1e400", "", "fast", "NaN"])
def test_numbers_are_finite_and_within_their_limits(
    option: str, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "a", "b", f"{option}={value}"]) == 2
    most = {"--seconds": "3600", "--min-speedup": "1000000"}[option]
    assert capsys.readouterr().err == f"atopipe: {option} is {value}, but must be a number above 0 and at most {most}\n"


def changed(models: Path, name: str, change: Callable[[onnx.GraphProto], None]) -> str:
    """The path of narrow.onnx with another graph."""
    model = onnx.load_model(models / "narrow.onnx")
    change(model.graph)
    onnx.save_model(model, models / f"{name}.onnx")
    return str(models / f"{name}.onnx")


def as_text(graph: onnx.GraphProto) -> None:
    (output,) = graph.output
    graph.node.append(onnx.helper.make_node("Cast", [output.name], ["text"], to=onnx.TensorProto.STRING))
    output.CopyFrom(onnx.helper.make_tensor_value_info("text", onnx.TensorProto.STRING, ["batch", 4]))


def endless(graph: onnx.GraphProto) -> None:
    """A loop after the logits, which goes on for ever."""
    (output,) = graph.output
    true = onnx.helper.make_tensor("true", onnx.TensorProto.BOOL, [], [True])
    values = [
        onnx.helper.make_tensor_value_info(name, kind, shape)
        for name, kind, shape in (
            ("number", onnx.TensorProto.INT64, []),
            ("going", onnx.TensorProto.BOOL, []),
            ("before", onnx.TensorProto.FLOAT, None),
            ("on", onnx.TensorProto.BOOL, []),
            ("after", onnx.TensorProto.FLOAT, None),
        )
    ]
    steps = [onnx.helper.make_node("Identity", [a], [b]) for a, b in (("going", "on"), ("before", "after"))]
    body = onnx.helper.make_graph(steps, "body", values[:3], values[3:])
    graph.initializer.append(true)
    graph.node.append(onnx.helper.make_node("Loop", ["", "true", output.name], ["last"], body=body))
    output.CopyFrom(onnx.helper.make_tensor_value_info("last", onnx.TensorProto.FLOAT, ["batch", 4]))


def test_a_model_that_gives_text_is_refused(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = changed(models, "text_output", as_text)
    assert main(["bench", path, path, "--seconds", "0.1"]) == 6
    words = f"'{path}' gives a tensor(string): an image classifier gives numbers, a tensor(float)"
    assert capsys.readouterr().err == f"atopipe: {words}\n"


def test_a_model_that_never_ends_is_stopped(
    models: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = changed(models, "endless", endless)
    monkeypatch.setattr(footprint, "SECONDS", 6)
    assert main(["bench", path, path, "--seconds", "0.1"]) == 6
    assert capsys.readouterr().err == f"atopipe: '{path}' did not process one image within 6 s\n"


@pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA is usable here")
def test_a_provider_that_is_not_usable_is_refused(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pair = [str(models / "wide.onnx"), str(models / "narrow.onnx")]
    assert main(["bench", *pair, "--provider", "cuda"]) == 5
    said = capsys.readouterr().err
    assert said.startswith("atopipe: the provider 'CUDAExecutionProvider' cannot run the model: ")
    assert said.count("\n") == 1
