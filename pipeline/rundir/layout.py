"""The names of what lies in a run directory, and what a complete stage has to say."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from atopipe.pipeline.config.schema import FULL
from atopipe.pipeline.system.files import sha256_json

RESULT, MANIFEST = "result.json", "manifest.json"
DEVICES = "devices"  # what other machines measured
EXECUTION = "execution.json"  # of stages that train: the device, and how the network was run on it
LIBRARIES = ("atopipe", "torch", "torchvision", "torch-pruning", "onnx", "onnxscript", "onnxruntime", "numpy")


class StageSpec(Protocol):
    """What the directory needs to know of a stage: name, stages it reads, configuration and libraries it depends on."""

    @property
    def NAME(self) -> str: ...  # noqa: N802 (a stage is a module, and this is its constant)
    @property
    def INPUTS(self) -> tuple[str, ...]: ...  # noqa: N802
    @property
    def SETTINGS(self) -> tuple[str, ...]: ...  # noqa: N802
    @property
    def LIBRARIES(self) -> tuple[str, ...]: ...  # noqa: N802


@dataclass(frozen=True)
class Result:
    """A complete stage. `depends`: what the key hashes; `artifacts`: file name -> SHA-256."""

    stage: str
    key: str
    depends: Mapping[str, Any]
    artifacts: Mapping[str, str]
    metrics: Mapping[str, float]
    seconds: float
    peak_bytes: int

    @property
    def digest(self) -> str:
        """Of what the stage produced, for the keys of the stages that read it."""
        return sha256_json({"artifacts": dict(self.artifacts), "metrics": dict(self.metrics)})


def file_of(variant: str) -> str:
    """The name of a variant's file: model.onnx, model.int8.onnx."""
    return "model.onnx" if variant == FULL else f"model.{variant}.onnx"
