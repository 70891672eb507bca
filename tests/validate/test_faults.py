"""Faults put into a delivered file on purpose: each is caught, and it is known by which layer.

What is wrong with a bundle's labels, preprocessing, samples and checksums is in tests/pipeline/test_bundle.py.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import ModelProto, TensorProto, numpy_helper
from onnxruntime.capi.onnxruntime_pybind11_state import EPFail
from torch import nn

from atopipe.export.onnx import export_onnx
from atopipe.validate.parity import ParityError, measure_parity
from atopipe.validate.session import CPU, ProviderError, SessionError, open_session

Change = Callable[[np.ndarray], np.ndarray]
Fault = Callable[[ModelProto], None]
FIRST, LAST = "0.weight", "7.weight"


def changed(name: str, change: Change) -> Fault:
    """Replace a weight by what `change` makes of it."""

    def fault(model: ModelProto) -> None:
        tensor = weight(model, name)
        tensor.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(tensor).copy()), name))

    return fault


def weight(model: ModelProto, name: str) -> TensorProto:
    return next(tensor for tensor in model.graph.initializer if tensor.name == name)


def one_larger(values: np.ndarray) -> np.ndarray:
    values.flat[3] *= 1.5
    return values


def swapped(values: np.ndarray) -> np.ndarray:
    values[[0, 1]] = values[[1, 0]]
    return values


def all_half(model: ModelProto) -> None:
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            rounded = numpy_helper.to_array(tensor).astype(np.float16).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(rounded, tensor.name))


def overflow(values: np.ndarray) -> np.ndarray:
    """What float16 makes of numbers that are too large for it."""
    with np.errstate(over="ignore"):
        return (values * 1e6).astype(np.float16).astype(np.float32)


def other_activation(model: ModelProto) -> None:
    next(node for node in model.graph.node if node.op_type == "Relu").op_type = "Abs"


def unknown_operator(model: ModelProto) -> None:
    next(node for node in model.graph.node if node.op_type == "Relu").op_type = "Rectify"


def fixed_batch(model: ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2


def newer_format(model: ModelProto) -> None:
    model.ir_version = 99


def newer_opset(model: ModelProto) -> None:
    model.opset_import[0].version = 999


def older_opset(model: ModelProto) -> None:
    model.opset_import[0].version = 17


def second_input(model: ModelProto) -> None:
    model.graph.input.append(onnx.helper.make_tensor_value_info("more", TensorProto.FLOAT, [1]))


FAULTS: dict[str, tuple[Fault, str]] = {
    "permuted channel": (changed(FIRST, swapped), "differs"),
    "one weight off": (changed(FIRST, one_larger), "differs"),
    "swapped classes": (changed(LAST, swapped), "differs"),
    "weights rounded to float16": (all_half, "differs"),
    "other activation": (other_activation, "differs"),
    "float16 overflow": (changed(LAST, overflow), "is not a finite number"),
    "not a number": (changed(FIRST, lambda values: values * np.nan), "is not a finite number"),
    "fixed batch": (fixed_batch, "the model cannot be run on float32 images"),
    "unknown operator": (unknown_operator, "is no ONNX model that this ONNX Runtime can load"),
    "newer format": (newer_format, "is no ONNX model that this ONNX Runtime can load"),
    "newer opset": (newer_opset, "is no ONNX model that this ONNX Runtime can load"),
    "opset downgrade": (older_opset, "is no ONNX model that this ONNX Runtime can load"),
    "second input": (second_input, "has 2 inputs and 1 outputs"),
}


Caught = Callable[[nn.Module, Path | bytes], str]


@pytest.fixture
def layer_that_caught(images, as_function, as_exact) -> Caught:
    """The sentence of what refused the model, `differs` where its logits did, or nothing."""

    def layer(net: nn.Module, model: Path | bytes) -> str:
        try:
            parity = measure_parity(as_function(net), model, images, exact=as_exact(net))
        except (ParityError, SessionError) as error:
            return str(error)
        return "differs" if parity.max_rel_diff > parity.tolerance else ""

    return layer


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_in_the_file_is_caught(name, models, net, layer_that_caught) -> None:
    fault, words = FAULTS[name]
    model = onnx.load_model(models[8])
    fault(model)
    assert words in layer_that_caught(net, model.SerializeToString())


@pytest.mark.parametrize("statistic", ["running_mean", "running_var"])
def test_a_statistic_of_a_norm_layer_off_by_one_percent_is_caught(
    statistic, net, layer_that_caught, tmp_path: Path
) -> None:
    path = tmp_path / "model.onnx"
    export_onnx(net, torch.zeros(1, 3, 16, 16), path, metadata={})
    norm = net[1]
    assert isinstance(norm, nn.BatchNorm2d)
    assert layer_that_caught(net, path) == ""
    getattr(norm, statistic)[0] *= 1.01
    assert layer_that_caught(net, path) == "differs"


@pytest.mark.parametrize("keep", [0, 100, -50])
def test_a_truncated_file_is_caught(keep: int, models, net, layer_that_caught) -> None:
    content = models[8].read_bytes()[:keep]
    caught = layer_that_caught(net, content)
    assert "is no ONNX model that this ONNX Runtime can load" in caught


def test_a_provider_that_is_not_there_is_not_replaced_in_silence(models) -> None:
    with pytest.raises(ProviderError, match="the provider 'NoSuchExecutionProvider' cannot run the model"):
        open_session(models[8], provider="NoSuchExecutionProvider")


class LostDevice:
    """What ONNX Runtime's session stands on, once its provider has failed."""

    def run(self, *_: object) -> None:
        raise EPFail("the device is lost")

    def is_webgpu_graph_capture_enabled(self) -> bool:
        return False


def test_a_provider_that_fails_in_the_middle_of_a_session_is_not_replaced(models, images) -> None:
    session = open_session(models[8])
    session.run(images)
    session.runtime._sess = LostDevice()
    with pytest.raises(SessionError, match=r"^the model cannot be run on float32 images .*: the device is lost$"):
        session.run(images)


def test_a_provider_that_was_replaced_in_the_middle_of_a_session_is_noticed(models, images, capsys) -> None:
    session = replace(open_session(models[8]), provider="CUDAExecutionProvider")  # asked for, and once there
    session.runtime._sess, session.runtime._fallback_providers = LostDevice(), [CPU]
    session.runtime.enable_fallback()
    with pytest.raises(ProviderError) as caught:
        session.run(images)
    assert "Falling back to ['CPUExecutionProvider']" in capsys.readouterr().out  # by ONNX Runtime itself
    assert str(caught.value) == (
        "the provider 'CUDAExecutionProvider' failed while the model ran, and ONNX Runtime continued with "
        "'CPUExecutionProvider': repair its drivers and libraries, or ask for another provider"
    )


def test_a_sound_file_is_let_through(models, net, layer_that_caught) -> None:
    assert layer_that_caught(net, models[8]) == ""
