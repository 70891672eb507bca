"""The inside of an exported file: its nodes in order, and what each of them computes."""

from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import torch
from torch import Tensor, nn

from atopipe.export.graph import cut_behind, nodes_of
from atopipe.export.onnx import export_onnx


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.inner, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, padding=1), nn.Linear(8, 4)

    def forward(self, images: Tensor) -> Tensor:
        x = self.stem(images).relu()
        return self.head((x + self.inner(x)).mean((2, 3)))


@pytest.fixture(scope="module")
def network() -> Residual:
    torch.manual_seed(0)
    return Residual().eval()


@pytest.fixture(scope="module")
def path(network: Residual, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("nodes") / "model.onnx"
    export_onnx(network, torch.zeros(1, 3, 8, 8), path, metadata={})
    return path


def test_each_node_comes_behind_those_it_reads_and_knows_its_layer(path: Path) -> None:
    nodes = nodes_of(path)
    written = [tensor for node in nodes for tensor in node.outputs]
    assert written[-1] == "logits"
    for index, node in enumerate(nodes):
        assert set(node.inputs) & set(written) <= {tensor for before in nodes[:index] for tensor in before.outputs}
    assert [(node.operator, node.layer) for node in nodes if node.operator in {"Conv", "Gemm"}] == [
        ("Conv", "stem"),
        ("Conv", "inner"),
        ("Gemm", "head"),
    ]


def test_a_file_cut_behind_a_node_gives_what_torch_computes_there(network: Residual, path: Path) -> None:
    images = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    (inner,) = [node for node in nodes_of(path) if node.layer == "inner"]
    session = ort.InferenceSession(cut_behind(path, inner.outputs[0]), providers=["CPUExecutionProvider"])
    (got,) = session.run(None, {"images": images.numpy()})
    with torch.no_grad():
        wanted = network.inner(network.stem(images).relu())
    np.testing.assert_allclose(got, wanted.numpy(), atol=1e-6)


def test_a_tensor_that_no_node_writes_is_refused(path: Path) -> None:
    with pytest.raises(KeyError, match="nothing"):
        cut_behind(path, "nothing")
