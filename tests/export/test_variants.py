"""The variants of an exported file: what is in them, how near they come, and what is refused."""

import json
import logging
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import ModelProto, TensorProto, numpy_helper
from torch import nn

from atopipe.export.graph import load_onnx
from atopipe.export.local_paths import find_local_path
from atopipe.export.onnx import export_onnx
from atopipe.export.variants import KINDS, QuantizeError, write_variant

METADATA = {"labels": json.dumps(["cat", "Käfer", "dog"]), "preprocessing": "{}"}
CHANNELS = 32


class Residual(nn.Module):
    """Convolutions, one of them depthwise, whose channels differ much in size, a skip connection and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, CHANNELS, 3, padding=1)
        self.depthwise = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, groups=CHANNELS)
        self.inner = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(CHANNELS)
        self.head = nn.Linear(CHANNELS, 3)
        with torch.no_grad():
            self.inner.weight *= torch.logspace(-3, 1, CHANNELS)[:, None, None, None]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.stem(x))
        x = torch.relu(x + self.norm(self.inner(torch.relu(self.depthwise(x)))))
        return self.head(x.mean((2, 3)))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("source") / "model.onnx"
    export_onnx(Residual().eval(), torch.zeros(1, 3, 12, 12), path, metadata=METADATA)
    return path


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(40, 3, 12, 12)).astype(np.float32)


@pytest.fixture(scope="module")
def variants(source: Path, images: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("variants")
    paths = {kind: folder / f"model.{kind}.onnx" for kind in KINDS}
    for kind, path in paths.items():
        report = write_variant(kind, source, path, images)
        assert (report.opset, report.ir_version, report.bytes) == (18, 8, path.stat().st_size)
    return paths


def logits(path: Path, images: np.ndarray) -> np.ndarray:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    (found,) = session.run(["logits"], {"images": images})
    return np.asarray(found)


def weight(model: ModelProto, name: str) -> np.ndarray:
    return numpy_helper.to_array(next(tensor for tensor in model.graph.initializer if tensor.name == name))


@pytest.mark.parametrize(("kind", "size", "difference"), [("fp16", 0.6, 0.01), ("int8", 0.5, 0.1)])
def test_a_variant_is_smaller_and_nearly_the_same_function(
    variants: dict[str, Path], source: Path, images: np.ndarray, kind: str, size: float, difference: float
) -> None:
    assert variants[kind].stat().st_size < size * source.stat().st_size
    for batch in (1, 7):
        wanted, got = logits(source, images[:batch]), logits(variants[kind], images[:batch])
        assert got.dtype == np.float32
        assert 0 < np.abs(got - wanted).max() < difference * logits(source, images).std()


@pytest.mark.parametrize("kind", KINDS)
def test_a_variant_is_as_clean_as_the_file_it_is_made_from(variants: dict[str, Path], kind: str) -> None:
    model = onnx.load_model(variants[kind])
    onnx.checker.check_model(variants[kind], full_check=True)
    for value, shape in ((model.graph.input[0], ["batch", 3, 12, 12]), (model.graph.output[0], ["batch", 3])):
        tensor = value.type.tensor_type
        assert tensor.elem_type == TensorProto.FLOAT
        assert [dim.dim_param or dim.dim_value for dim in tensor.shape.dim] == shape
    assert {e.key: e.value for e in load_onnx(variants[kind]).metadata_props} == METADATA
    assert find_local_path(model) is None
    assert (model.producer_name, model.producer_version) == ("atopipe", "")
    assert [entry.domain for entry in model.opset_import] == [""]
    assert sorted(file.name for file in variants[kind].parent.iterdir()) == ["model.fp16.onnx", "model.int8.onnx"]


def test_weights_have_seven_bits_and_a_scale_per_channel(variants: dict[str, Path]) -> None:
    model = onnx.load_model(variants["int8"])
    convolutions = [node for node in model.graph.node if node.op_type == "Conv"]
    makers = {output: node for node in model.graph.node for output in node.output}
    scales = []
    for node in convolutions:
        values, scale, zero = (weight(model, name) for name in makers[node.input[1]].input)
        assert (values.dtype, scale.shape, bool(zero.any())) == (np.int8, (CHANNELS,), False)
        assert 60 <= np.abs(values).max() <= 64
        assert weight(model, makers[node.input[0]].input[2]).dtype == np.uint8
        scales.append(scale)
    assert [scale.max() > 1000 * scale.min() for scale in scales] == [False, False, True]
    assert makers["logits"].op_type == "Gemm"


def test_the_head_of_float16_is_float16(variants: dict[str, Path]) -> None:
    assert weight(onnx.load_model(variants["fp16"]), "head.weight").dtype == np.float16


def test_another_process_in_another_folder_writes_the_same_bytes(
    variants: dict[str, Path], source: Path, tmp_path: Path
) -> None:
    environment = os.environ | {"PYTHONHASHSEED": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, __file__, str(source)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    for kind, path in variants.items():
        assert (tmp_path / f"{kind}.onnx").read_bytes() == path.read_bytes()


def test_the_tools_leave_no_trace(
    source: Path, images: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    before = sys.path.copy(), logging.root.handlers.copy(), sorted(source.parent.iterdir())
    for kind in KINDS:
        write_variant(kind, source, tmp_path / f"{kind}.onnx", images)
    assert (sys.path, logging.root.handlers, sorted(source.parent.iterdir())) == before
    assert list((tmp_path / "temporary").iterdir()) == []


def changed(source: Path, target: Path, name: str, factor: float) -> Path:
    """A copy of the file with a weight multiplied."""
    model = onnx.load_model(source)
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == name)
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(factor), name))
    onnx.save_model(model, target)
    return target


@pytest.mark.parametrize(
    ("factor", "words"),
    [
        (3e4, r"the activation '\w+' of this network reaches \d\.?\d*e\+\d+"),
        (3e7, r"a weight of this network is \d\.?\d*e\+\d+"),
        (np.nan, "a weight of this network is nan"),
    ],
)
def test_what_float16_cannot_hold_is_refused(
    source: Path, images: np.ndarray, tmp_path: Path, factor: float, words: str
) -> None:
    large = changed(source, tmp_path / "large.onnx", "stem.weight", factor)
    with pytest.raises(QuantizeError, match=f"^float16 ends at 65504, but {words}: use int8$"):
        write_variant("fp16", large, tmp_path / "fp16.onnx", images)
    assert [file.name for file in tmp_path.iterdir()] == ["large.onnx"]


def test_an_overflow_that_the_logits_do_not_show_is_refused(source: Path, images: np.ndarray, tmp_path: Path) -> None:
    """The inner activations end far beyond float16, the logits are as ever: each change makes up for the other."""
    inner = changed(source, tmp_path / "a.onnx", "stem.weight", 1e5)
    large = changed(inner, tmp_path / "b.onnx", "head.weight", 1e-5)
    assert np.abs(logits(large, images)).max() < 10
    with pytest.raises(QuantizeError, match="the activation"):
        write_variant("fp16", large, tmp_path / "fp16.onnx", images)


def test_a_failure_of_the_tools_is_one_sentence(source: Path, images: np.ndarray, tmp_path: Path) -> None:
    for kind in KINDS:
        with pytest.raises(QuantizeError) as caught:
            write_variant(kind, source, tmp_path / "out.onnx", images[:, :2])
        assert re.match(rf"^ONNX Runtime's tools cannot make {kind} of this network \(\w+: .+\)$", str(caught.value))
    assert list(tmp_path.iterdir()) == []


if __name__ == "__main__":
    torch.set_num_threads(1)
    drawn = np.random.default_rng(0).normal(size=(40, 3, 12, 12)).astype(np.float32)
    for name in KINDS:
        write_variant(name, Path(sys.argv[1]), Path(f"{name}.onnx"), drawn)
