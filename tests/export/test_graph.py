"""The inside of an exported file: its nodes in order, and what each of them computes."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from torch import Tensor, nn

from atopipe.export.graph import cut_behind, layer_flops, nodes_of
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


def edited(path: Path, tmp_path: Path, change: Callable[[onnx.ModelProto], None]) -> Path:
    model = onnx.load_model(path)
    change(model)
    onnx.save_model(model, tmp_path / "edited.onnx")
    return tmp_path / "edited.onnx"


def named_height(model: onnx.ModelProto) -> None:
    (inner,) = [value for value in model.graph.value_info if value.name == output_of(model, "inner")]
    inner.type.tensor_type.shape.dim[2].dim_param = "height"


def no_shape(model: onnx.ModelProto) -> None:
    kept = [value for value in model.graph.value_info if value.name != output_of(model, "inner")]
    del model.graph.value_info[:]
    model.graph.value_info.extend(kept)


def output_of(model: onnx.ModelProto, layer: str) -> str:
    return next(node.output[0] for node in model.graph.node if f"{layer}.weight" in node.input)


def test_the_flops_of_layers_are_those_of_their_shapes(path: Path) -> None:
    assert layer_flops(path) == {"stem": 2 * 36 * 8 * 27, "inner": 2 * 36 * 8 * 72, "head": 2 * 8 * 4}


@pytest.mark.parametrize("change", [named_height, no_shape])
def test_a_layer_whose_output_has_no_known_size_has_no_known_flops(
    path: Path, tmp_path: Path, change: Callable[[onnx.ModelProto], None]
) -> None:
    counted = layer_flops(edited(path, tmp_path, change))
    assert counted == {**layer_flops(path), "inner": None}
