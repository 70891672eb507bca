"""The nodes of an ONNX file, and the file cut off behind any of their outputs: to inspect a model."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, numpy_helper


@dataclass(frozen=True)
class Node:
    """One operation: the tensors it reads and writes by name, and the layer whose weight it uses, if it uses one."""

    name: str
    operator: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    layer: str


def nodes_of(path: Path) -> tuple[Node, ...]:
    """Return the nodes in an order in which each comes behind those it reads."""
    graph = onnx.load_model(path).graph
    weights = {tensor.name for tensor in graph.initializer}
    return tuple(
        Node(
            name=node.name,
            operator=node.op_type,
            inputs=tuple(filter(None, node.input)),
            outputs=tuple(filter(None, node.output)),
            layer=next((name.removesuffix(".weight") for name in node.input if name in weights), ""),
        )
        for node in graph.node
    )


def cut_behind(path: Path, tensor: str) -> bytes:
    """Return the file with this tensor as its only output; KeyError if no node writes it."""
    model = onnx.load_model(path)
    graph = model.graph
    if not any(tensor in node.output for node in graph.node):
        raise KeyError(tensor)
    known = {value.name: value for value in (*graph.value_info, *graph.output)}
    wanted = ValueInfoProto()
    wanted.CopyFrom(known.get(tensor, ValueInfoProto(name=tensor)))
    del graph.output[:]
    graph.output.append(wanted)
    content: bytes = model.SerializeToString()
    return content


def load_onnx(path: Path) -> ModelProto:
    """Return what is in the file."""
    return onnx.load_model(path)


def largest_weight(proto: ModelProto) -> float:
    """Return the largest magnitude of a float32 weight, 0 where there is none."""
    weights = [tensor for tensor in proto.graph.initializer if tensor.data_type == TensorProto.FLOAT]
    return max((float(np.abs(numpy_helper.to_array(tensor)).max(initial=0)) for tensor in weights), default=0.0)


def layer_flops(path: Path) -> dict[str, int | None]:
    """Return, for every layer of a file by `export_onnx` in order, its FLOPs for one image, by the layer's name.

    Layers are convolutions and products with a weight; two FLOPs per multiply-accumulate. None where the file does not
    say how large an output of the layer is.
    """
    graph = onnx.load_model(path).graph
    weights = {tensor.name: list(tensor.dims) for tensor in graph.initializer}
    shapes = {value.name: value.type.tensor_type.shape.dim for value in (*graph.value_info, *graph.output)}
    counted: dict[str, int | None] = {}
    for node in graph.node:
        if node.op_type in {"Conv", "Gemm", "MatMul"} and node.input[1] in weights:
            name = node.input[1].removesuffix(".weight")
            before, found = counted.get(name, 0), _flops(node, weights[node.input[1]], shapes.get(node.output[0]))
            counted[name] = None if before is None or found is None else before + found
    return counted


def _flops(node: NodeProto, weight: list[int], output: Sequence[Any] | None) -> int | None:
    """Of one run of a layer; None where a dimension of its `output` behind the batch is not known."""
    dims: list[int] = [dim.dim_value for dim in output[1:]] if output else []
    if not dims or 0 in dims:  # a dimension with a name, or without anything, has the value 0
        return None
    per_output = math.prod(weight[1:]) if node.op_type == "Conv" else math.prod(weight) // _columns(node, weight)
    return 2 * math.prod(dims) * per_output


def _columns(node: NodeProto, shape: list[int]) -> int:
    """The outputs of a matrix product, from its weight [inputs, outputs], or [outputs, inputs] if it is transposed."""
    transposed = any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
    return shape[0] if transposed else shape[-1]
