"""The preflight check: removal, export and parity before the first epoch."""

import json
import os
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from atopipe.ato.discovery.find import find_groups
from atopipe.ato.search.budget import Budget
from atopipe.ato.search.cost import flops
from atopipe.pipeline.cli.main import main
from atopipe.pipeline.engine.preflight import Preflight, run_preflight

NETS = """
import torch
from torch import nn

def block(i, o):
    return nn.Sequential(nn.Conv2d(i, o, 3, 2, 1), nn.BatchNorm2d(o), nn.ReLU())

def net(num_classes, width=16):
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2 * width, num_classes))
    return nn.Sequential(block(3, width), block(width, 2 * width), head)

class Fixed(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.net = net(num_classes)

    def forward(self, x):
        return self.net(x) if len(x) < 3 else self.net(x) + torch.stack([image.sum() for image in x])[:, None].tanh()

def several(num_classes):
    class Several(nn.Module):
        def forward(self, x):
            return {"logits": x}
    return Several()

def on_meta(num_classes):
    with torch.device("meta"):
        return net(num_classes)
"""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in [name for name in os.environ if name.startswith("ATOPIPE_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    (tmp_path / "nets.py").write_text(NETS)
    return tmp_path


def test_a_preflight_check_meets_the_budget_and_changes_nothing() -> None:
    torch.set_num_threads(1)
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    example, generator = torch.zeros(1, 3, 16, 16), torch.Generator().manual_seed(0)
    groups = find_groups(model, example, generator)
    budget = Budget.of_dense(flops(model, groups, example), 0.6)
    preflight = run_preflight(model, groups, [budget], example, align=1, generator=generator)
    assert 0.5 < preflight.ratios["flops"] <= 0.6
    assert preflight.lossless <= 1e-10
    assert preflight.passed
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def said(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str]:
    code = main(list(argv))
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    return code, captured.err.strip()


RUN = ("train", "--target-flops", "0.5", "--epochs", "4", "--threads", "1", "--quiet", "--output", "out")


def test_what_cannot_be_exported_is_refused_before_the_first_epoch(
    capsys: pytest.CaptureFixture[str], here: Path
) -> None:
    code, line = said(capsys, *RUN, "--model", "./nets.py:Fixed")
    assert code == 2
    assert line.startswith("atopipe: model './nets.py:Fixed' fails the preflight check: Fixed ")
    assert "epoch" not in (here / "out/events.jsonl").read_text()


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        (
            "several",
            "atopipe: model 'nets.py:several' cannot be pruned: Several returns a dict, but must return logits",
        ),
        ("on_meta", "atopipe: model factory 'nets.py:on_meta' built its network on meta: build it on cpu; "),
        ("nett", "atopipe: model factory 'nets.py:nett': module 'nets.py' has no function 'nett': did you mean net"),
    ],
)
def test_a_factory_that_cannot_be_used_is_named(capsys: pytest.CaptureFixture[str], name: str, sentence: str) -> None:
    code, line = said(capsys, "inspect", "--model", f"nets.py:{name}", "--threads", "1")
    assert (code, line.startswith(sentence)) == (2, True), line


def test_a_missing_file_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    code, line = said(capsys, "inspect", "--model", "other.py:net")
    assert code == 2
    assert line.startswith("atopipe: model factory 'other.py:net' does not import: there is no file 'other.py'; ")


def test_inspect_with_a_target_tries_it(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [
        "inspect",
        "--model",
        "nets.py:net",
        "--model-args",
        "width=24",
        "--input-size",
        "16",
        "--threads",
        "1",
    ]
    assert main([*arguments, "--target-flops", "0.5", "--keep", "0.*", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["input"] == [3, 16, 16]
    assert [(s["name"], s["size"]) for s in found["sets"]] == [("1.0", 48)]
    assert {"name": "0.0", "size": 24, "reason": "--keep '0.*'"} in found["unprunable"]
    assert found["preflight"]["ratios"]["flops"] <= 0.5
    assert found["preflight"]["lossless"] <= 1e-10
    assert 0 < found["minimum_params"] < 1
    assert main([*arguments, "--target-flops", "0.5"]) == 0
    text = capsys.readouterr().out
    assert "preflight ok (random weights): 0." in text
    assert "torch = ONNX Runtime within " in text


def test_inspect_tries_the_target_of_the_configuration_file(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "own.yaml"
    file.write_text("{model: {name: 'nets.py:net', args: {width: 24}}, target_flops: 0.5, data: {input_size: 16}}")
    assert main(["inspect", "--config", str(file), "--threads", "1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["preflight"]["ratios"]["flops"] <= 0.5


def test_arguments_that_are_none_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    code, line = said(capsys, "inspect", "--model", "nets.py:net", "--model-args", "width")
    assert (code, line) == (2, "atopipe: --model-args is width, but must be NAME=VALUE, e.g. '--model-args width=64'")


def deep() -> nn.Module:
    """As EfficientNet-Lite0 is on small images: many norm layers whose last maps are single pixels."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for position in range(40):
        width = 3 if position == 0 else 16
        stride = 2 if position % 8 == 0 else 1
        layers += [nn.Conv2d(width, 16, 3, stride, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU6()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5))


def test_random_weights_make_no_rounding_that_trained_ones_would_not() -> None:
    torch.set_num_threads(1)
    model, example, generator = deep(), torch.zeros(1, 3, 64, 64), torch.Generator().manual_seed(0)
    groups = find_groups(model, example, generator)
    budget = Budget.of_dense(flops(model, groups, example), 0.6)
    found = run_preflight(model, groups, [budget], example, align=1, generator=generator)
    assert found.parity < found.tolerance / 5
    assert found.passed


def test_rounding_that_torch_shares_is_no_fault_of_the_file() -> None:
    numbers = {"ratios": {}, "lossless": 0.0, "tolerance": 1e-4, "opset": 18, "bytes": 1, "seconds": 1.0}
    assert Preflight(**numbers, parity=5e-4, rounding_ratio=1.2).passed
    assert not Preflight(**numbers, parity=5e-4, rounding_ratio=500.0).passed
