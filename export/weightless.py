"""A graph without its weights: the same operations on tensors of other widths, in a file of a few kilobytes.

How long a network takes does not depend on what its weights are. So a structure can be timed before anything is
trained or removed: each weight becomes a `ConstantOfShape`, which ONNX Runtime folds when it opens the file.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper, shape_inference

from atopipe.export.onnx import ExportError

MATRIX_OPERATORS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
SMALL = 64  # values up to which a constant stays: limits of activations, axes, and the like
NORM_FILL = 1.0  # of all that is large but weights: no runtime leaves it out as it does an addition of zeros
APART = 2.0**-12  # between the values of two weights

Shapes = Mapping[str, Sequence[int]]


def weightless(model: Path, shapes: Shapes) -> bytes:
    """The graph in `model` with weights of these `shapes`, by the names of the network's parameters; others stay.

    `model` may be without weights itself. Bias, number of groups of a depthwise convolution, and target shapes of
    `Reshape` follow. Raises ExportError where the graph does not fit the shapes.
    """
    proto = onnx.load_model(model)
    graph = proto.graph
    kept = _constants(graph)
    wanted = dict(_wanted_shapes(graph, kept, shapes))
    matrices = {node.input[1] for node in graph.node if node.op_type in MATRIX_OPERATORS}
    made: list[NodeProto] = []
    for name, tensor in list(kept.items()):
        dims = wanted.get(name, list(tensor.dims))
        has_other_values = dims != list(tensor.dims) or not tensor.HasField("raw_data")
        if tensor.data_type == TensorProto.FLOAT and (math.prod(dims) > SMALL or has_other_values):
            shape = f"{name}/shape"
            del kept[name]
            kept[shape] = numpy_helper.from_array(np.array(dims, np.int64), shape)
            value = np.array([_fill(dims, len(made)) if name in matrices else NORM_FILL], np.float32)
            made.append(helper.make_node("ConstantOfShape", [shape], [name], value=numpy_helper.from_array(value)))
    nodes = [*made, *graph.node]
    del graph.initializer[:], graph.value_info[:], graph.node[:]
    graph.initializer.extend(kept.values())
    graph.node.extend(nodes)
    _fit_reshapes(proto)
    _require_consistent(proto)
    content: bytes = proto.SerializeToString(deterministic=True)
    return content


def _fill(dims: Sequence[int], number: int) -> float:
    """The one value of a weight: layers average, so that what they compute stays near 1, and no denormal slows them.

    No two weights are alike: a runtime would keep one for both, which the cache then holds, and be faster than it is
    with a trained network.
    """
    return (1 + APART * number) * dims[0] / math.prod(dims)


def layer_names(model: Path) -> dict[str, str]:
    """The name of every operation that ONNX Runtime may give to a layer -> the layer, as the network calls it.

    A runtime fuses what follows a convolution into it, and calls the result after any of the operations or tensors.
    """
    graph = onnx.load_model(model).graph
    weights = {tensor.name for tensor in graph.initializer}
    weights |= {node.output[0] for node in graph.node if node.op_type == "ConstantOfShape"}
    readers: dict[str, list[NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    found: dict[str, str] = {}
    for node in graph.node:
        if node.op_type in MATRIX_OPERATORS and node.input[1] in weights:
            layer = node.input[1].removesuffix(".weight")
            found |= dict.fromkeys(_names_along(node, readers), layer)
    return found


def _names_along(node: NodeProto, readers: Mapping[str, Sequence[NodeProto]]) -> Iterator[str]:
    """Names of the operation, of its output, and of the operations that alone read it, up to the next layer."""
    while True:
        yield from (node.name, node.output[0])
        following = readers.get(node.output[0], [])
        if len(following) != 1 or following[0].op_type in MATRIX_OPERATORS:
            return
        node = following[0]


def _constants(graph: GraphProto) -> dict[str, TensorProto]:
    """Every constant by name; of one without values, which is taken out of the graph, type and shape."""
    stored = {tensor.name: tensor for tensor in graph.initializer}
    made = [node for node in graph.node if node.op_type == "ConstantOfShape" and node.input[0] in stored]
    for node in made:
        shape = numpy_helper.to_array(stored.pop(node.input[0]))
        stored[node.output[0]] = TensorProto(name=node.output[0], data_type=TensorProto.FLOAT, dims=shape.tolist())
        graph.node.remove(node)
    return stored


def _wanted_shapes(
    graph: GraphProto, constants: Mapping[str, TensorProto], shapes: Shapes
) -> Iterator[tuple[str, list[int]]]:
    for name, tensor in constants.items():
        if name in shapes and math.prod(shapes[name]) > 0 and len(shapes[name]) == len(tensor.dims):
            yield name, list(shapes[name])
    for node in graph.node:
        if node.op_type in MATRIX_OPERATORS and node.input[1] in constants and node.input[1] in shapes:
            old, new = constants[node.input[1]].dims, shapes[node.input[1]]
            groups = next((attribute for attribute in node.attribute if attribute.name == "group"), None)
            if groups is not None and groups.i > 1 and groups.i == old[0] and old[1] == 1:  # depthwise
                groups.i = new[0]
            if len(node.input) > 2 and node.input[2] in constants:
                outputs = new[1] * (groups.i if groups else 1) if node.op_type == "ConvTranspose" else new[0]
                yield node.input[2], [outputs]


def _fit_reshapes(proto: ModelProto) -> None:
    """Give every `Reshape` to a constant shape as many values as now come in, along its widest axis."""
    graph = proto.graph
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type != "Reshape" or node.input[1] not in constants:
            continue
        target = constants[node.input[1]].copy()
        incoming = _sizes(proto).get(node.input[0], [0])[1:]
        have, now = math.prod(target[1:].tolist()), math.prod(incoming)
        if now > 0 and have > 0 and have != now and min(target[1:]) > 0:
            axis = 1 + int(target[1:].argmax())
            target[axis] = now * int(target[axis]) // have
            name = f"{node.input[1]}/{node.output[0]}"
            graph.initializer.append(numpy_helper.from_array(target, name))
            node.input[1] = name


def _sizes(proto: ModelProto) -> dict[str, list[int]]:
    inferred = shape_inference.infer_shapes(proto, data_prop=True).graph
    values = (*inferred.value_info, *inferred.input)
    return {value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim] for value in values}


def _require_consistent(proto: ModelProto) -> None:
    try:
        shape_inference.infer_shapes(proto, check_type=True, strict_mode=True, data_prop=True)
    except shape_inference.InferenceError as error:
        first = next(iter(str(error).splitlines()), "no reason given")
        raise ExportError(f"the ONNX graph cannot be given other widths: {first}") from error
