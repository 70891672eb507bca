"""The only place that makes an ONNX Runtime session: explicit threads, no spinning, no silent change of provider."""

import ctypes
import io
import os
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from enum import Enum
from functools import cache, partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"
TENSORRT = "TensorrtExecutionProvider"
NO_TF32 = "NVIDIA_TF32_OVERRIDE"
_ERRORS = 3  # ONNX Runtime's severities: 0 verbose, 1 information, 2 warning, 3 error, 4 fatal
_FATAL = 4  # whatever stops a session is raised as well: its log would only say the same twice
_MEMORY = {CUDA: "cuda", TENSORRT: "cuda"}  # where a provider's own tensors are, unless beside everything else
_NUMBERS = {f"tensor({kind})" for kind in ("float", "float16", "double", "int8", "uint8", "int32", "int64")}
# Whole float32 as everywhere else, and cuDNN's convolutions by rule: a timed search may take another one each time.
_PROVIDER_OPTIONS = {CUDA: {"use_tf32": "0", "cudnn_conv_algo_search": "HEURISTIC"}}

ort.set_default_logger_severity(_ERRORS)


class SessionError(Exception):
    """The file is no model that can be run, or the images do not fit it. One sentence for the user."""


class ProviderError(Exception):
    """The wanted execution provider is not the one that would run the model. One sentence for the user."""


@dataclass(frozen=True)
class Providers:
    """Execution providers that run a model here, and why others that ONNX Runtime lists do not."""

    usable: tuple[str, ...]
    skipped: Mapping[str, str] = field(default_factory=dict)


ONLY_CPU = Providers((CPU,))


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
            raise SessionError(f"the model takes {shape[0]} images at a time only: export it with a free batch axis")
        return int(sizes[0]), int(sizes[1]), int(sizes[2])

    def run(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the logits [B, K] of images [B, C, H, W].

        Raises:
            SessionError: their shape or type does not fit.
            ProviderError: it was not the session's provider that computed them.
        """
        try:
            logits = cast(NDArray[np.float32], self.runtime.run(None, {self.input_name: images})[0])
        except Exception as error:  # ONNX Runtime's exceptions share no base class
            raise SessionError(
                f"the model cannot be run on {images.dtype} images of shape {list(images.shape)}: {_brief(error)}"
            ) from error
        self._require_provider()
        return logits

    def prepare(self, images: NDArray[np.float32]) -> Callable[[], object]:
        """Return a function that runs these images again and again; beside the CPU without copying them each time."""
        return partial(self.run, images) if self.provider == CPU else self.bound(images)

    def bound(self, images: NDArray[np.float32]) -> Callable[[], Any]:
        """Return a run with images and logits in the provider's own memory; it ends when the logits are there.

        It returns the logits where they are, as an OrtValue.
        """
        memory, output = _MEMORY.get(self.provider, "cpu"), self.runtime.get_outputs()[0].name
        binding = self.runtime.io_binding()
        binding.bind_ortvalue_input(self.input_name, ort.OrtValue.ortvalue_from_numpy(images, memory, 0))
        binding.bind_output(output, memory)

        def run() -> Any:
            self.runtime.run_with_iobinding(binding)
            binding.synchronize_outputs()
            self._require_provider()
            return binding.get_outputs()[0]

        return run

    def _require_provider(self) -> None:
        """ONNX Runtime may continue with another provider after a failure: its answers are not this one's."""
        now = self.runtime.get_providers()[0]
        if now != self.provider:
            raise ProviderError(
                f"the provider '{self.provider}' failed while the model ran, and ONNX Runtime continued with '{now}': "
                "repair its drivers and libraries, or ask for another provider"
            )


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
        SessionError: there is no such file, it is no ONNX model, it has more than one input or output, or its output
            is no tensor of numbers.
    """
    _require_listed(provider)
    if provider in _MEMORY:
        _load_cuda()
    source = model if isinstance(model, bytes) else _existing(model)
    try:
        runtime = ort.InferenceSession(
            source,
            _options(provider, threads, optimisation),
            providers=[(provider, _PROVIDER_OPTIONS.get(provider, {}))],
            enable_fallback=0,
        )
    except Exception as error:  # ONNX Runtime's exceptions share no base class
        raise _explained(error, model, provider) from error
    if runtime.get_providers()[0] != provider:
        raise ProviderError(_not_usable(provider, f"ONNX Runtime chose {runtime.get_providers()[0]} instead"))
    if len(runtime.get_inputs()) != 1 or len(runtime.get_outputs()) != 1:
        raise SessionError(
            f"{_name(model)} has {len(runtime.get_inputs())} inputs and {len(runtime.get_outputs())} outputs: "
            "an image classifier has one of each"
        )
    if (given := runtime.get_outputs()[0].type) not in _NUMBERS:
        raise SessionError(f"{_name(model)} gives a {given}: an image classifier gives numbers, a tensor(float)")
    return Session(runtime, runtime.get_inputs()[0].name, provider, threads, optimisation)


def usable_providers(model: Path) -> Providers:
    """Try the model on one image with every provider that ONNX Runtime lists; the CPU's is usable untried.

    Being listed says only that a provider was built in: its libraries, its driver and its device may all be missing.
    """
    skipped: dict[str, str] = {}
    for provider in (name for name in ort.get_available_providers() if name != CPU):
        if reason := _why_not_usable(model, provider):
            skipped[provider] = reason
    return Providers(tuple(name for name in ort.get_available_providers() if name not in skipped), skipped)


def _why_not_usable(model: Path, provider: str) -> str:
    """The reason as a clause, empty where there is none."""
    if provider == TENSORRT and os.environ.get(NO_TF32) != "0":
        return f"it computes in TF32, which only {NO_TF32}=0 in the environment switches off"
    ort.set_default_logger_severity(_FATAL)  # a library that cannot be loaded is an answer here, not an error
    try:
        session = open_session(model, provider=provider)
        session.run(np.zeros((1, *session.input_shape()), np.float32))
    except (ProviderError, SessionError) as error:
        return _missing_library(provider) or str(error)
    finally:
        ort.set_default_logger_severity(_ERRORS)
    return ""


def _missing_library(provider: str) -> str:
    """What the loader of Linux misses, which ONNX Runtime writes to its log only; empty where that is no reason."""
    name = provider.removesuffix("ExecutionProvider").lower()
    path = Path(ort.__file__).parent / "capi" / f"libonnxruntime_providers_{name}.so"
    if not path.exists():
        return ""
    try:
        ctypes.CDLL(str(path))
    except OSError as error:
        return f"its library cannot be loaded: {error}" if "cannot open shared object" in str(error) else ""
    return ""


@cache
def _load_cuda() -> None:
    """CUDA and cuDNN as pip installs them, where the loader alone does not find them; what is missing is told later."""
    with redirect_stdout(io.StringIO()):
        ort.preload_dlls()


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
    line = next(iter(str(error).strip().splitlines()), "")
    return line.rsplit(" : ", maxsplit=1)[-1].rstrip(". ") or type(error).__name__
