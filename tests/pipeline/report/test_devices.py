"""The promise for another device: its own measurements decide it, and nobody else's."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from atopipe.pipeline.config.load import load_config
from atopipe.pipeline.report.devices import FOR_ANOTHER_DEVICE, decided
from atopipe.pipeline.report.summary import latency_facts

DIGEST = "a" * 64
DEVICE: dict[str, Any] = {
    "variant": "fp32",
    "model_sha256": DIGEST,
    "device": {"cpu": "ARM Cortex-A76", "machine": "aarch64", "system": "Linux", "onnxruntime": "1.20.1", "threads": 1},
    "selftest": {"passed": True, "max_abs_diff": 1e-6},
    "bench": {"p50_ms": 3.9, "runs": 100, "kept": 1.0},
}
GATES: list[dict[str, Any]] = [
    {"name": "flops.ratio", "value": 0.3, "limit": "at most 0.3", "outcome": "pass", "reason": "fits"},
    {
        "name": "latency.ratio",
        "value": 0.2,
        "limit": "at most 0.4",
        "outcome": "inconclusive",
        "reason": "elsewhere",
        "inconclusive_because": FOR_ANOTHER_DEVICE,
    },
]


def run_for(folder: Path, target: str = "0.4") -> Any:
    """A run for a device on which the dense network takes 10 ms."""
    table = {"processor": "ARM Cortex-A76, asimd", "runtime": "1.20.1", "threads": 1, "networks": [{"ms": 10.0}]}
    (folder / "latency.json").write_text(json.dumps(table))
    (folder / "devices").mkdir()
    settings = {"model.name": "resnet18", "target_latency": target, "latency_table": "latency.json"}
    result = SimpleNamespace(artifacts={"model.onnx": DIGEST})
    stages = SimpleNamespace(artifact=lambda stage, name: folder / name, result=lambda stage: result)
    return SimpleNamespace(root=folder, config=load_config(None, settings), stages=stages)


@pytest.mark.parametrize(
    ("ms", "target", "outcome", "value"),
    [(3.9, "0.4", "pass", 0.39), (4.1, "0.4", "fail", 0.41), (3.9, "4ms", "pass", 3.9), (4.1, "4ms", "fail", 4.1)],
)
def test_the_device_decides_its_promise(ms: float, target: str, outcome: str, value: float, tmp_path: Path) -> None:
    run = run_for(tmp_path, target)
    device = {**DEVICE, "bench": {**DEVICE["bench"], "p50_ms": ms}}
    (tmp_path / "devices/one.json").write_text(json.dumps(device))
    (tmp_path / "devices/fast.json").write_text(json.dumps({**DEVICE, "bench": {**DEVICE["bench"], "p50_ms": 1.0}}))
    first, second = decided(run, GATES)
    assert first == GATES[0]
    assert (second["outcome"], second["value"]) == (outcome, pytest.approx(value))
    assert "on ARM Cortex-A76" in second["reason"]


@pytest.mark.parametrize(
    "other",
    [
        {"model_sha256": "b" * 64},
        {"device": {**DEVICE["device"], "cpu": "AMD EPYC"}},
        {"device": {**DEVICE["device"], "onnxruntime": "1.31.1"}},
        {"device": {**DEVICE["device"], "threads": 2}},
        {"bench": {**DEVICE["bench"], "kept": 0.5}},
    ],
    ids=["another model", "another processor", "another runtime", "other threads", "a busy device"],
)
def test_another_or_a_busy_device_decides_nothing(other: dict[str, Any], tmp_path: Path) -> None:
    run = run_for(tmp_path)
    (tmp_path / "devices/one.json").write_text(json.dumps({**DEVICE, **other}))
    (tmp_path / "devices/damaged.json").write_text("{")
    assert decided(run, GATES) == GATES


def test_predicted_stands_beside_measured_and_accuracy_beside_time() -> None:
    metrics = {"latency.predicted_ratio": 0.49, "latency.ratio": 0.5, "latency.shrunk_p50_ms": 5.0}
    predicted, worth = latency_facts(
        {**metrics, "accuracy.onnx": 0.9, "accuracy.dense": 0.92, "latency.dense_p50_ms": 10.0}
    )
    assert predicted == "predicted 0.490 of the dense latency, measured 0.500: off by -2.0 %"
    assert worth == "18 points of top-1 per ms, dense 9.2"
    assert latency_facts({}) == ()
