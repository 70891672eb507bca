"""The only place that makes an ONNX Runtime session: explicit threads, no spinning, no silent change of provider."""

import os
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

CPU = "CPUExecutionProvider"
_ERRORS = 3  # ONNX Runtime's severities: 0 verbose, 1 information, 2 warning, 3 error, 4 fatal
_FATAL = 4  # whatever stops a session is raised as well: its log would only say the same twice

ort.set_default_logger_severity(_ERRORS)


class SessionError(Exception):
    """The file is no model that can be run, or the images do not fit it. One sentence for the user."""


class ProviderError(Exception):
    """The wanted execution provider is not the one that would run the model. One sentence for the user."""


class Optimisation(Enum):
    """How far ONNX Runtime rewrites the graph before running it."""

    NONE = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    ALL = ort.GraphOptimizationLevel.ORT_ENABLE_ALL


@dataclass(frozen=True)
class Session:
    """A model ready to run: images float32 [B, C, H, W] -> logits float32 [B, K]."""

    runtime: ort.InferenceSession
    input_name: str
    provider: str
    threads: int
    optimisation: Optimisation

    @property
    def metadata(self) -> dict[str, str]:
        """The text stored in the model, such as its labels and preprocessing."""
        return dict(self.runtime.get_modelmeta().custom_metadata_map)

    def input_shape(self) -> tuple[int, int, int]:
        """Return (C, H, W) of the images; raise SessionError if they are not fixed or the batch size is."""
        shape = self.runtime.get_inputs()[0].shape
        sizes = shape[1:]
        if len(shape) != 4 or not all(isinstance(size, int) for size in sizes):
            raise SessionError(f"the model takes an input of shape {shape}, not images [batch, C, H, W] of one size")
        if isinstance(shape[0], int):
            raise SessionError(
                f"the model takes {shape[0]} images at a time and no other number: export a free batch axis"
            )
        return int(sizes[0]), int(sizes[1]), int(sizes[2])

    def run(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the logits [B, K] of images [B, C, H, W]; raise SessionError if their shape or type does not fit."""
        try:
            return cast(NDArray[np.float32], self.runtime.run(None, {self.input_name: images})[0])
        except Exception as error:  # ONNX Runtime's exceptions share no base class of their own
            raise SessionError(
                f"the model cannot be run on {images.dtype} images of shape {list(images.shape)}: {_brief(error)}"
            ) from error


def open_session(
    model: Path | bytes,
    *,
    provider: str = CPU,
    threads: int = 1,
    optimisation: Optimisation = Optimisation.ALL,
) -> Session:
    """Open an ONNX model, from a file or from its bytes, on exactly the provider that is asked for.

    Ensures: `threads` threads inside an operator, operators one after the other, and no busy waiting, which would
    slow down whatever else runs on the machine.

    Raises:
        ProviderError: the provider is unknown here, or cannot run the whole model without help from the CPU.
        SessionError: there is no such file, it is no ONNX model, or it has more than one input or output.
    """
    _require_listed(provider)
    source = model if isinstance(model, bytes) else _existing(model)
    try:
        runtime = ort.InferenceSession(
            source, _options(provider, threads, optimisation), providers=[provider], enable_fallback=0
        )
    except Exception as error:  # ONNX Runtime's exceptions share no base class of their own
        raise _explained(error, model, provider) from error
    if runtime.get_providers()[0] != provider:
        raise ProviderError(_not_usable(provider, f"ONNX Runtime chose {runtime.get_providers()[0]} instead"))
    if len(runtime.get_inputs()) != 1 or len(runtime.get_outputs()) != 1:
        raise SessionError(
            f"{_name(model)} has {len(runtime.get_inputs())} inputs and {len(runtime.get_outputs())} outputs: "
            "an image classifier has one of each"
        )
    return Session(runtime, runtime.get_inputs()[0].name, provider, threads, optimisation)


def available_threads() -> int:
    """Return how many processors this process may use: its affinity, lowered to its control group's CPU quota."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(affinity, int(cpu_quota(Path("/sys/fs/cgroup")))))


def cpu_quota(root: Path) -> float:
    """Return the processors granted by the control group mounted at `root`, version 2 or 1; at least 1, or 1e9.

    Source: the kernel's cgroup-v2 (`cpu.max` holds "quota period" or "max period", in microseconds) and the CFS
    bandwidth documentation of version 1 (`cpu.cfs_quota_us` is -1 without a limit).
    """
    unlimited = 1e9
    try:
        if (root / "cpu.max").exists():
            quota, period = (root / "cpu.max").read_text().split()
        else:
            quota, period = ((root / "cpu" / f"cpu.cfs_{part}_us").read_text().strip() for part in ("quota", "period"))
    except OSError:
        return unlimited
    return unlimited if quota in {"max", "-1"} else max(1.0, int(quota) / int(period))


def _options(provider: str, threads: int, optimisation: Optimisation) -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = optimisation.value
    options.log_severity_level = _FATAL
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if provider != CPU:
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    return options


def _require_listed(provider: str) -> None:
    if provider not in ort.get_available_providers():
        raise ProviderError(_not_usable(provider, "this ONNX Runtime was built without it"))


def _not_usable(provider: str, why: str) -> str:
    listed = ", ".join(ort.get_available_providers())
    return (
        f"the provider '{provider}' cannot run the model: {why} (listed here: {listed}); "
        f"install its drivers and libraries, or use '{CPU}'"
    )


def _existing(path: Path) -> str:
    if not path.is_file():
        raise SessionError(f"there is no ONNX model at '{path}': export one first")
    return str(path)


def _explained(error: Exception, model: Path | bytes, provider: str) -> Exception:
    """Tell a missing provider from a bad file: the CPU provider is always there, so there it can only be the file."""
    if provider == CPU or "INVALID_PROTOBUF" in str(error):
        return SessionError(f"{_name(model)} is no ONNX model that this ONNX Runtime can load: {_brief(error)}")
    return ProviderError(_not_usable(provider, _brief(error)))


def _name(model: Path | bytes) -> str:
    return "the given model" if isinstance(model, bytes) else f"'{model}'"


def _brief(error: Exception) -> str:
    """Return the first line of ONNX Runtime's message without its code, "[ONNXRuntimeError] : 7 : NAME : "."""
    return str(error).strip().splitlines()[0].rsplit(" : ", maxsplit=1)[-1].rstrip(". ")
