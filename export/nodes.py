"""The nodes of an ONNX file, and the file cut off behind any of their outputs: to see what goes on inside a model."""

from dataclasses import dataclass
from pathlib import Path

import onnx
from onnx import ValueInfoProto


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
