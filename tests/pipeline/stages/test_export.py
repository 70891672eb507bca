"""What stage export writes beside the delivered file: the network it is compared with, and the layers of both."""

import json
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper
from safetensors.numpy import load_file

from atopipe.pipeline.stages.export import layer_rows


def weights_in(path: Path) -> dict[str, np.ndarray]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load_model(path).graph.initializer}


def test_the_dense_file_has_the_weights_that_the_baseline_trained(finished: Path) -> None:
    trained = load_file(finished / "out/stages/baseline/weights.safetensors")
    exported = weights_in(finished / "out/stages/export/dense.onnx")
    np.testing.assert_array_equal(exported["5.weight"], trained["5.weight"])
    result = json.loads((finished / "out/stages/export/result.json").read_text())
    assert set(result["depends"]["inputs"]) == {"baseline", "shrink"}


def test_a_layer_that_is_in_one_file_only_or_not_counted_is_no_layer_without_flops() -> None:
    rows = layer_rows({"a": 10, "b": 20, "old": 5}, {"a": 4, "b": None, "new": 5})
    assert rows == [
        {"name": "a", "dense": 10, "shrunk": 4},
        {"name": "b", "dense": 20, "shrunk": None},
        {"name": "old", "dense": 5, "shrunk": None},
        {"name": "new", "dense": None, "shrunk": 5},
    ]
