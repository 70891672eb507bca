"""What the doctor finds on this machine, and on broken ones."""

import importlib
import json
import re
import sys
from pathlib import Path

import onnxruntime
import pytest
import torch

from atopipe.export.smoke_model import write_smallest
from atopipe.pipeline.cli.main import main
from atopipe.pipeline.cli.tools import doctor
from atopipe.pipeline.cli.tools.doctor import REQUIRED, examine
from atopipe.pipeline.system import machine
from atopipe.validate.session import open_session


def test_a_sound_machine_has_every_package_and_a_provider(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    found = {line.split()[0]: line for line in lines}
    assert found["torch"].split() == ["torch", torch.__version__.split("+")[0]]
    assert set(REQUIRED) <= set(found)
    assert "ONNX Runtime   CPUExecutionProvider: usable" in lines
    assert sum(line.startswith("ONNX Runtime") for line in lines) == len(onnxruntime.get_available_providers())


def test_it_is_there_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json"]) == 0
    findings = json.loads(capsys.readouterr().out)
    assert {"name", "said", "remedy"} == set(findings[0])
    assert {"memory", "disk", "CPU"} <= {finding["name"] for finding in findings}


def test_a_package_that_does_not_import_is_named_with_a_remedy(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = importlib.import_module

    def broken(name: str) -> object:
        if name == "sklearn":
            raise ImportError("libgomp.so.1: cannot open shared object file\nmore")
        return real(name)

    monkeypatch.setattr(importlib, "import_module", broken)
    assert main(["doctor"]) == 5
    captured = capsys.readouterr()
    reason = "cannot be imported: libgomp.so.1: cannot open shared object file"
    assert f"scikit-learn   {reason}  ->  pip install --force-reinstall scikit-learn" in captured.out
    assert captured.err == "atopipe: problems found: scikit-learn: see the fix beside each\n"


def test_a_full_disk_and_little_memory_are_in_the_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "LEAST_DISK", 1e18)
    monkeypatch.setattr(doctor, "LEAST_MEMORY", 1e18)
    assert {finding.name for finding in examine() if finding.remedy} == {"memory", "disk"}


def test_the_cpu_package_of_onnx_runtime_is_accepted_in_the_place_of_the_other(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(machine, "_version", lambda package: None if package == "onnxruntime-gpu" else "1.31.1")
    assert main(["doctor"]) == 0
    assert "onnxruntime    1.31.1" in capsys.readouterr().out.splitlines()


def test_both_packages_of_onnx_runtime_overwrite_each_other(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(machine, "_version", lambda package: "1.31.1")
    assert main(["doctor"]) == 5
    assert "  ->  pip uninstall -y onnxruntime onnxruntime-gpu, then install one of them" in capsys.readouterr().out


def test_the_smallest_model_runs(tmp_path: Path) -> None:
    write_smallest(tmp_path / "m.onnx")
    session = open_session(tmp_path / "m.onnx")
    images = torch.randn(3, *session.input_shape()).numpy()
    wanted = torch.nn.functional.conv2d(torch.from_numpy(images), torch.ones(2, 3, 3, 3)).mean((2, 3))
    assert torch.allclose(torch.from_numpy(session.run(images)), wanted, atol=1e-5)


def test_a_missing_onnx_runtime_does_not_stop_the_doctor(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("onnxruntime", "atopipe.validate.session", "atopipe.export.smoke_model"):
        monkeypatch.setitem(sys.modules, name, None)
    assert main(["doctor"]) == 5
    out = capsys.readouterr().out
    assert "pip install --force-reinstall onnxruntime" in out
    assert re.search(r"^disk +\d", out, re.MULTILINE)
