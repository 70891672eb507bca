"""The model files beside this one, in ONNX Runtime, and what belongs to them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from pictures import Floats, Settings

HERE = Path(__file__).resolve().parent
FULL = "fp32"


def variants() -> list[str]:
    """The names of what is here: fp32 first."""
    return [FULL, *sorted(path.name.split(".")[1] for path in HERE.glob("model.*.onnx"))]


def model_file(variant: str) -> Path:
    return HERE / ("model.onnx" if variant == FULL else f"model.{variant}.onnx")


def open_model(variant: str, threads: int) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return ort.InferenceSession(str(model_file(variant)), options, providers=["CPUExecutionProvider"])


def run(session: ort.InferenceSession, images: Floats) -> Floats:
    logits: Floats = session.run(None, {session.get_inputs()[0].name: images})[0]
    return logits


def shares_of(logits: Floats) -> NDArray[np.float64]:
    """The probabilities [N, K] of all classes."""
    exponentials = np.exp(logits.astype(np.float64) - logits.max(1, keepdims=True))
    shares: NDArray[np.float64] = exponentials / exponentials.sum(1, keepdims=True)
    return shares


def read_labels() -> list[str]:
    return (HERE / "labels.txt").read_text(encoding="utf-8").splitlines()


def read_settings() -> Settings:
    settings: Settings = json.loads((HERE / "preprocess.json").read_text(encoding="utf-8"))
    return settings


def failed_gates() -> list[str]:
    """What the model did not reach where it was made, by manifest.json; empty where that is not there."""
    try:
        gates: Any = json.loads((HERE / "manifest.json").read_text(encoding="utf-8"))["gates"]
        return [str(gate["name"]) for gate in gates if gate["outcome"] == "fail"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return []
