"""Exports an image classifier to one clean, reproducible ONNX file.

What `torch.onnx.export` writes is made fit to hand over: stack traces and local paths are removed, the IR version is
lowered to the oldest one which the opset allows (more runtimes load it), the same weights give the same bytes, and
the batch axis is checked to be dynamic before the file appears.
"""

import contextlib
import copy
import hashlib
import inspect
import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import ModelProto, helper, numpy_helper, shape_inference
from torch import Tensor, nn

from atopipe.export.compatibility import oldest_runtime
from atopipe.export.local_paths import find_local_path, parts

OPSET = 18
"""The exporter's native opset: a lower one is silently not honoured, a higher one only shuts out older runtimes."""

_FILE_LIMIT = 2**31 - 1  # bytes: the most that one protobuf message, and so one ONNX file, can hold
_EXAMPLE_BATCH = 2  # torch.export takes a batch of 1 for a constant
_PROBE_BATCH = 3  # any batch size other than the example's


class ExportError(Exception):
    """The network cannot be exported faithfully. The message is one sentence for the user."""


@dataclass(frozen=True)
class ExportReport:
    """What was written, read back from the file itself; `runtime`: the oldest ONNX Runtime that loads it, if known."""

    opset: int
    ir_version: int
    runtime: str | None
    nodes: int
    bytes: int
    sha256: str


def export_onnx(
    model: nn.Module, example: Tensor, path: Path, *, opset: int = OPSET, metadata: Mapping[str, str]
) -> ExportReport:
    """Write `model` (in evaluation mode, float32) to `path` as one self-contained ONNX file.

    Args:
        model: the network, images [B, C, H, W] -> logits [B, K]; a copy is exported; this one is not changed.
        example: images [B, C, H, W] of the size the network will see; only their shape matters.
        path: the file to write; it appears complete or not at all.
        opset: the ONNX operator set; the default runs in every ONNX Runtime from 1.14 (2023) on.
        metadata: text stored in the file, such as labels and preprocessing as JSON.

    Ensures: one input `images` [batch, C, H, W] and one output `logits` [batch, K], where `batch` is really free;
    the file passes the ONNX checker and strict shape inference; no text in it contains a path of this machine;
    equal weights, shapes and metadata give equal bytes.

    Raises:
        ExportError: the network cannot be traced, fixes the batch size, is larger than an ONNX file may be, or the
            file would break one of the promises above.
    """
    name = type(model).__name__
    _require_one_file(model, name)
    return save_onnx(_trace(model, example, opset, name), path, opset=opset, metadata=metadata, name=name)


def save_onnx(proto: ModelProto, path: Path, *, opset: int, metadata: Mapping[str, str], name: str) -> ExportReport:
    """Write a graph with all that `export_onnx` ensures; raise ExportError, about the `name`, where it cannot be."""
    _clean(proto)
    helper.set_model_props(proto, dict(sorted(metadata.items())))
    proto = _infer_shapes(proto, name)
    _require_free_batch(proto, name)
    if found := find_local_path(proto):
        raise ExportError(f"the ONNX file would contain {found}: remove it from the names or the metadata")
    return _write(proto.SerializeToString(deterministic=True), path, opset)


def save_test_data(folder: Path, images: NDArray[np.float32], logits: NDArray[np.float32]) -> None:
    """Write what goes into a model and should come out, as ONNX Runtime's test runner reads it."""
    folder.mkdir(parents=True)
    for name, file, array in (("images", "input_0.pb", images), ("logits", "output_0.pb", logits)):
        (folder / file).write_bytes(numpy_helper.from_array(array, name).SerializeToString(deterministic=True))


def _require_one_file(model: nn.Module, name: str) -> None:
    size = 4 * sum(tensor.numel() for tensor in model.state_dict().values())  # bytes, float32
    if size > _FILE_LIMIT:
        raise ExportError(f"{name} has {size / 2**30:.1f} GiB of weights, and one ONNX file holds at most 2 GiB")


def _trace(model: nn.Module, example: Tensor, opset: int, name: str) -> ModelProto:
    """Trace a copy of the model on the CPU with two images of zeros."""
    network = copy.deepcopy(model).cpu().float().eval()
    images = torch.zeros(_EXAMPLE_BATCH, *example.shape[1:])
    try:
        with silence():
            program = torch.onnx.export(
                network,
                (images,),
                input_names=["images"],
                output_names=["logits"],
                opset_version=opset,
                dynamo=True,
                external_data=False,
                dynamic_shapes=_free_batch(network),
                verbose=False,
            )
    except Exception as error:  # the exporter raises whatever the traced code and its own passes raise
        raise ExportError(
            f"{name} cannot be exported to ONNX ({root_cause(error)}): "
            "torch.export must be able to trace its forward method for any batch size"
        ) from error
    if program is None:
        raise ExportError(f"{name} cannot be exported to ONNX: this torch returned no program from its exporter")
    return program.model_proto


def _free_batch(network: nn.Module) -> tuple[Any, ...]:
    """The batch axis of the one input, named as the exporter asks for it: nested where forward() takes `*args`."""
    first = next(iter(inspect.signature(network.forward).parameters.values()), None)
    free = {0: torch.export.Dim("batch")}
    return ((free,),) if first is not None and first.kind is first.VAR_POSITIONAL else (free,)


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Keep the progress, warnings and logs of another library from the user; its exceptions pass."""
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


def root_cause(error: BaseException) -> str:
    """Return the kind and the first line of the exception that others were raised from."""
    while error.__cause__ is not None:
        error = error.__cause__
    line = next(iter(str(error).strip().splitlines()), "no reason given")
    return f"{type(error).__name__}: {line}"


def _clean(proto: ModelProto) -> None:
    """Leave only what a runtime needs: a file that depends on nothing but the network."""
    _clean_message(proto)
    del proto.graph.value_info[:]  # inferred again, in the order of the nodes
    proto.producer_name, proto.producer_version = "atopipe", ""
    proto.ir_version = helper.find_min_ir_version_for(list(proto.opset_import), ignore_unknown=True)


def _clean_message(message: Any) -> None:
    for field, value in message.ListFields():
        if field.name in {"doc_string", "metadata_props"}:
            message.ClearField(field.name)
        elif field.type == field.TYPE_MESSAGE:
            for part in parts(value):
                _clean_message(part)


def _infer_shapes(proto: ModelProto, name: str) -> ModelProto:
    try:
        return shape_inference.infer_shapes(proto, check_type=True, strict_mode=True, data_prop=True)
    except shape_inference.InferenceError as error:
        raise ExportError(
            f"the shapes in the ONNX graph of {name} contradict each other ({root_cause(error)})"
        ) from error


def _require_free_batch(proto: ModelProto, name: str) -> None:
    """Prove by shape inference that another batch size than the example's is not turned into a fixed one."""
    if len(proto.graph.input) != 1 or len(proto.graph.output) != 1:
        raise ExportError(
            f"{name} has {len(proto.graph.input)} inputs and {len(proto.graph.output)} outputs in ONNX: "
            "its forward method must take one batch of images and return one tensor of logits"
        )
    probe = ModelProto()
    probe.CopyFrom(proto)
    del probe.graph.value_info[:]
    probe.graph.input[0].type.tensor_type.shape.dim[0].dim_value = _PROBE_BATCH
    probe.graph.output[0].type.tensor_type.ClearField("shape")
    shape = _infer_shapes(probe, name).graph.output[0].type.tensor_type.shape.dim
    declared = {value.type.tensor_type.shape.dim[0].dim_param for value in (*proto.graph.input, *proto.graph.output)}
    # Inference may give up on a size (0: window attention does that) but must not find another one.
    if len(shape) != 2 or shape[0].dim_value not in {0, _PROBE_BATCH} or declared != {"batch"}:
        sizes = ", ".join(str(dim.dim_value or dim.dim_param or "?") for dim in shape)
        raise ExportError(
            f"{name} turns {_PROBE_BATCH} images into an output of shape [{sizes}], not [{_PROBE_BATCH}, classes]: "
            "its forward method must keep the batch axis free, as x.flatten(1) does"
        )


def _write(content: bytes, path: Path, opset: int) -> ExportReport:
    partial = path.with_name(f"{path.name}.partial")
    try:
        partial.write_bytes(content)
        report = _read_back(partial, opset)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return report


def _read_back(path: Path, opset: int) -> ExportReport:
    """Check the file as it lies on the disk, and report what is in it."""
    try:
        onnx.checker.check_model(path, full_check=True)
    except (onnx.checker.ValidationError, shape_inference.InferenceError) as error:
        raise ExportError(f"the exported file does not pass the ONNX checker ({root_cause(error)})") from error
    content = path.read_bytes()
    proto = onnx.load_model_from_string(content)
    written = {entry.domain: entry.version for entry in proto.opset_import}[""]
    if written != opset:
        raise ExportError(f"opset {opset} was requested, but torch writes opset {written} for this network")
    return ExportReport(
        opset=written,
        ir_version=proto.ir_version,
        runtime=oldest_runtime(written, proto.ir_version),
        nodes=len(proto.graph.node),
        bytes=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
    )
