"""The exported file: what is in it, what is not, and that it runs."""

import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from torch import Tensor, nn

from atopipe.export.graph import load_onnx
from atopipe.export.local_paths import local_folders
from atopipe.export.onnx import OPSET, ExportError, ExportReport, export_onnx

METADATA = {
    "labels": json.dumps(["cat", "Käfer", "dog"]),
    "preprocessing": json.dumps({"mean": [0.5], "size": [12, 12]}),
}


class Residual(nn.Module):
    """A block with a skip connection, a depthwise convolution and a batch norm which is not fresh."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = torch.relu(x + self.norm(self.depthwise(x)))
        return self.head(self.drop(x.mean((2, 3))))


def residual() -> Residual:
    torch.manual_seed(0)
    net = Residual()
    nn.init.normal_(net.norm.running_mean)
    nn.init.uniform_(net.norm.running_var, 0.5, 2.0)
    nn.init.normal_(net.norm.bias)
    return net


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Path, ExportReport]:
    net = residual().train()
    path = tmp_path_factory.mktemp("export") / "model.onnx"
    return net, path, export_onnx(net, torch.zeros(1, 3, 12, 12), path, metadata=METADATA)


@pytest.mark.parametrize("batch", [1, 2, 7])
def test_any_batch_gives_the_logits_of_torch_in_evaluation_mode(exported, batch: int) -> None:
    _, path, _ = exported
    images = torch.randn(batch, 3, 12, 12, generator=torch.Generator().manual_seed(batch))
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    (logits,) = session.run(["logits"], {"images": images.numpy()})
    with torch.no_grad():
        wanted = residual().eval()(images).numpy()
    np.testing.assert_allclose(logits, wanted, atol=1e-5)


def test_the_callers_model_is_untouched(exported) -> None:
    net, _, _ = exported
    assert net.training
    for (name, tensor), (_, fresh) in zip(net.state_dict().items(), residual().state_dict().items(), strict=True):
        assert torch.equal(tensor, fresh), name


def test_the_report_is_what_the_file_holds(exported) -> None:
    _, path, report = exported
    content = path.read_bytes()
    model = onnx.load_model(path)
    assert report.opset == model.opset_import[0].version == OPSET
    assert report.ir_version == model.ir_version == 8
    assert report.nodes == len(model.graph.node) > 4
    assert report.bytes == len(content)
    assert report.sha256 == hashlib.sha256(content).hexdigest()


def test_the_file_is_whole_valid_and_alone(exported) -> None:
    _, path, _ = exported
    onnx.checker.check_model(path, full_check=True)
    assert [file.name for file in path.parent.iterdir()] == ["model.onnx"]
    graph = onnx.load_model(path).graph
    shapes = [
        [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (*graph.input, *graph.output)
    ]
    assert shapes == [["batch", 3, 12, 12], ["batch", 3]]
    assert [graph.input[0].name, graph.output[0].name] == ["images", "logits"]


def test_nothing_in_the_file_tells_of_this_machine(exported) -> None:
    _, path, _ = exported
    content = path.read_bytes()
    marks = [str(Path.cwd()), str(Path.home()), sys.prefix, "site-packages", ".py", "stack_trace", "pkg.torch"]
    assert [mark for mark in marks if mark.encode() in content] == []


def test_metadata_comes_back_as_it_was(exported) -> None:
    _, path, _ = exported
    assert {e.key: e.value for e in load_onnx(path).metadata_props} == METADATA


def test_another_process_in_another_folder_writes_the_same_bytes(exported, tmp_path: Path) -> None:
    _, path, _ = exported
    again = tmp_path / "again.onnx"
    environment = os.environ | {"PYTHONHASHSEED": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, str(again)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert again.read_bytes() == path.read_bytes()


class FixedBatch(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean(1).reshape(2, -1)


class TwoOutputs(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x.mean((2, 3)), x.amax((2, 3))


class Untraceable(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise KeyError("nothing here")


REFUSALS = {
    FixedBatch: "turns 3 images into an output of shape [2, 24], not [3, classes]: "
    "its forward method must keep the batch axis free, as x.flatten(1) does",
    TwoOutputs: "has 1 inputs and 2 outputs in ONNX: "
    "its forward method must take one batch of images and return one tensor of logits",
    Untraceable: "cannot be exported to ONNX (KeyError: 'nothing here'): "
    "torch.export must be able to trace its forward method for any batch size",
}


@pytest.mark.parametrize("network", REFUSALS)
def test_a_network_that_cannot_be_handed_over_is_refused(network: type[nn.Module], tmp_path: Path, capfd) -> None:
    message = f"{network.__name__} {REFUSALS[network]}"
    with pytest.raises(ExportError, match=f"^{re.escape(message)}$"):
        export_onnx(network(), torch.zeros(1, 3, 4, 4), tmp_path / "model.onnx", metadata={})
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr() == ("", "")


def test_a_local_path_in_the_metadata_is_refused(tmp_path: Path) -> None:
    (folder, *_) = local_folders()
    message = (
        f"the ONNX file would contain the local path '{folder}' in '{folder}/data': "
        "remove it from the names or the metadata"
    )
    with pytest.raises(ExportError, match=f"^{re.escape(message)}$"):
        export_onnx(nn.Flatten(), torch.zeros(1, 1, 2, 2), tmp_path / "model.onnx", metadata={"data": f"{folder}/data"})


def test_an_opset_that_the_exporter_does_not_honour_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"the file of before")
    with pytest.raises(ExportError, match=r"^opset 17 was requested, but torch writes opset 18 for this network$"):
        export_onnx(residual(), torch.zeros(1, 3, 12, 12), path, opset=17, metadata={})
    assert path.read_bytes() == b"the file of before"


if __name__ == "__main__":
    export_onnx(residual(), torch.zeros(1, 3, 12, 12), Path(sys.argv[1]), metadata=METADATA)
