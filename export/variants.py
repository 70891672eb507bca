"""Writes smaller variants of an exported file by ONNX Runtime's own tools: float16, and integers of eight bits.

Both keep the float32 input and output, the names, the free batch axis and the metadata of the file they are made from,
and pass the same checks as that one. Whether a variant is worth anything is a matter of measuring it: `validate`.

float16 ends at 65504. On most CPUs ONNX Runtime computes float16 in float32, where nothing overflows, so that logits
there do not show what will happen on a device. The ranges of all activations do, and they are judged here.

int8 is static and in the QDQ form: the ranges of the activations come from calibration images and are part of the file.
Activations are unsigned (the fast kernels of x86 take those); weights are signed, symmetric, with a scale per channel,
and of seven bits: two products then fit 16 bits, so that a CPU without VNNI saturates nothing.
"""

import contextlib
import logging
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atopipe.export.graph import largest_weight, load_onnx
from atopipe.export.onnx import ExportReport, root_cause, save_onnx, silence

Images = NDArray[np.float32]

BATCH = 16  # calibration images at a time
FLOAT16_MAX = 65504.0


class QuantizeError(Exception):
    """The variant cannot be made of this network. One sentence for the user."""


def write_variant(kind: str, model: Path, path: Path, images: Images) -> ExportReport:
    """Write a variant of the file `model` to `path`.

    Args:
        kind: one of `KINDS`.
        model: a file by `export_onnx`.
        path: the file to write; it appears complete or not at all. Equal files and images give equal bytes.
        images: [N, C, H, W], preprocessed: the ranges of the activations are those on them.

    Raises:
        QuantizeError: a weight or an activation is beyond float16, or ONNX Runtime's tools cannot convert this network.
        ExportError: the variant would break a promise of `export_onnx`.
    """
    with _tools(kind) as folder:
        proto = KINDS[kind](shutil.copyfile(model, folder / "model.onnx"), images)
    source = load_onnx(model)
    opset = next(entry.version for entry in source.opset_import if not entry.domain)
    metadata = {entry.key: entry.value for entry in source.metadata_props}
    return save_onnx(proto, path, opset=opset, metadata=metadata, name=path.name)


def _to_fp16(model: Path, images: Images) -> Any:
    from onnxruntime.quantization.onnx_model import ONNXModel
    from onnxruntime.transformers.float16 import convert_float_to_float16

    proto = load_onnx(model)
    _require_float16("a weight of this network is", largest_weight(proto))
    name, largest = _largest_activation(model, images)
    _require_float16(f"the activation '{name}' of this network reaches", largest)
    converted = ONNXModel(convert_float_to_float16(proto, keep_io_types=True))
    converted.topological_sort()  # the casts of input and output were appended at the end
    return converted.model


def _to_int8(model: Path, images: Images) -> Any:
    """The logits themselves stay float32: of eight bits, two classes would often share the largest."""
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    quantized = model.with_name("int8.onnx")
    quantize_static(
        model,
        quantized,
        Reader(images),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        reduce_range=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        extra_options={"OpTypesToExcludeOutputQuantization": ["Gemm"]},
    )
    return load_onnx(quantized)


KINDS: Mapping[str, Callable[[Path, Images], Any]] = {"fp16": _to_fp16, "int8": _to_int8}


class Reader:
    """Hands out the images in batches, in the way that ONNX Runtime's calibration asks for them."""

    def __init__(self, images: Images) -> None:
        self._batches = iter([images[start : start + BATCH] for start in range(0, len(images), BATCH)])

    def get_next(self) -> dict[str, Images] | None:
        batch = next(self._batches, None)
        return None if batch is None else {"images": batch}


def _largest_activation(model: Path, images: Images) -> tuple[str, float]:
    """The tensor with the largest magnitude on these images, and that; one that is no number counts as the largest."""
    from onnxruntime.quantization import create_calibrator

    calibrator = create_calibrator(model, None, augmented_model_path=str(model.with_name("ranges.onnx")))
    calibrator.collect_data(Reader(images))
    ranges = {name: float(np.abs(data.range_value).max()) for name, data in calibrator.compute_data().data.items()}
    return max(ranges.items(), key=lambda item: np.nan_to_num(item[1], nan=np.inf))


def _require_float16(what: str, largest: float) -> None:
    if not largest <= FLOAT16_MAX:
        raise QuantizeError(f"float16 ends at {FLOAT16_MAX:g}, but {what} {largest:.3g}: use int8")


@contextlib.contextmanager
def _tools(kind: str) -> Iterator[Path]:
    """A private folder to work in, gone afterwards, and a process that stays as it was.

    ONNX Runtime's tools write beside the file they read, print, warn, log and lengthen `sys.path`, and raise anything.
    """
    path, handlers = sys.path.copy(), logging.root.handlers.copy()
    try:
        with tempfile.TemporaryDirectory() as folder, silence():
            yield Path(folder)
    except QuantizeError:
        raise
    except Exception as error:
        raise QuantizeError(f"ONNX Runtime's tools cannot make {kind} of this network ({root_cause(error)})") from error
    finally:
        sys.path[:], logging.root.handlers[:] = path, handlers
