"""What the commands say of a network's latency, on this machine."""

import json

import pytest

from atopipe.pipeline.cli.main import main
from atopipe.pipeline.stages.profile import pack, probe, table

NETWORK = ["--model", "resnet20", "--input-size", "32"]


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few networks, timed briefly, on a machine that others use too."""
    for name, value in {"FITTED": 9, "HELD_OUT": 2, "FEWER": (1,)}.items():
        monkeypatch.setattr(pack, name, value)
    for name, number in {"SECONDS": 0.001, "ENOUGH": 0.0}.items():
        monkeypatch.setattr(probe, name, number)
    monkeypatch.setattr(table, "TOO_NOISY", 100.0)


def test_inspect_says_what_of_a_latency_target_is_reachable_and_why(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", *NETWORK, "--target-latency", "0.9", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["latency"]
    assert 0 < found["minimum"] < 0.9
    assert len(found["layers"]) == 10
    times = [layer["ms"] for layer in found["layers"]]
    assert times == sorted(times, reverse=True)
    assert all(0 < layer["flops_share"] < 1 for layer in found["layers"])
    assert all(cliff["ms"] > cliff["wider_ms"] for cliff in found["cliffs"])


def test_a_target_out_of_reach_is_refused_with_the_range(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", *NETWORK, "--target-latency", "0.0001"]) == 2
    error = capsys.readouterr().err
    assert "cannot be reached: with the widths efficient on the device the network keeps from 0." in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("target", ["8", "fast", "0"])
def test_a_latency_without_a_unit_is_refused(target: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", *NETWORK, "--target-latency", target]) == 2
    assert "an amount like 8ms of latency" in capsys.readouterr().err


def test_a_provider_that_is_not_there_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["profile", *NETWORK, "--deploy-provider", "tensorrt"]) == 5
    error = capsys.readouterr().err
    assert "provider 'TensorrtExecutionProvider'" in error
    assert error.count("\n") == 1
