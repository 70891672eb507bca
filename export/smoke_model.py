"""The smallest image classifier: to see whether a machine runs ONNX models at all, before there is one."""

from pathlib import Path

import numpy as np
from onnx import TensorProto, helper, numpy_helper, save

OPSET, IR_VERSION = 17, 8  # older than what any supported ONNX Runtime loads


def write_smallest(path: Path) -> None:
    """Writes a convolution, a mean over all pixels and two logits, for images [batch, 3, 8, 8]."""
    weights = numpy_helper.from_array(np.ones((2, 3, 3, 3), np.float32), "weights")
    nodes = [
        helper.make_node("Conv", ["images", "weights"], ["maps"]),
        helper.make_node("GlobalAveragePool", ["maps"], ["means"]),
        helper.make_node("Flatten", ["means"], ["logits"]),
    ]
    images = helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 3, 8, 8])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 2])
    graph = helper.make_graph(nodes, "smallest", [images], [logits], [weights])
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION), path)
