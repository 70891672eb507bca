"""When the delivered file is not the network, its first operation that differs is named."""

import shutil
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import onnx
import pytest
import torch
from onnx import ModelProto, numpy_helper
from torch import Tensor, nn

from atopipe.export.onnx import export_onnx
from atopipe.pipeline.cli.main import main
from atopipe.pipeline.stages.validate.divergence import compare, explain_divergence
from atopipe.validate.parity import Case, Parity, ParityError
from atopipe.validate.session import CPU

Fault = Callable[[ModelProto], None]
EXAMPLE = torch.zeros(1, 3, 8, 8)


class Block(nn.Module):
    """Two branches that meet again, so that a fault in one of them leaves tensors behind it whole."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.right = nn.Sequential(nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8))

    def forward(self, x: Tensor) -> Tensor:
        return (self.left(x) + self.right(x)).relu()


def new_network() -> nn.Sequential:
    torch.manual_seed(3)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), Block(), Block(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
    return net.eval()


@pytest.fixture
def network() -> nn.Sequential:
    return new_network()


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The network's file as it should be, which is what a fresh export gives as well."""
    path = tmp_path_factory.mktemp("exported") / "model.onnx"
    export_onnx(new_network(), EXAMPLE, path, metadata={})
    return path


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(0).normal(0.3, 1.2, (8, 3, 8, 8)).astype(np.float32)


@pytest.fixture
def path(exported: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(exported, tmp_path))


def parting(network: nn.Module, path: Path, images: np.ndarray, fresh: Path | None = None) -> str:
    """What is said; `fresh` is what an export would write where the network is as it was."""
    export = partial(shutil.copy, fresh) if fresh else partial(export_onnx, network, EXAMPLE, metadata={})
    return compare(network, path, images, export=export, seed=0)[1]


def edited(path: Path, fault: Fault) -> None:
    model = onnx.load_model(path)
    fault(model)
    path.write_bytes(model.SerializeToString())


def permuted(name: str) -> Fault:
    def fault(model: ModelProto) -> None:
        tensor = next(tensor for tensor in model.graph.initializer if tensor.name == name)
        values = numpy_helper.to_array(tensor).copy()
        values[[0, 1]] = values[[1, 0]]
        tensor.CopyFrom(numpy_helper.from_array(values, name))

    return fault


def other_activation(model: ModelProto) -> None:
    next(node for node in model.graph.node if node.op_type == "Relu").op_type = "Abs"


def not_a_number(model: ModelProto) -> None:
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == "2.right.0.weight")
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(np.nan), tensor.name))


def test_a_sound_file_parts_nowhere(network, path, images) -> None:
    assert parting(network, path, images) == ""


@pytest.mark.parametrize("layer", ["0", "1.left.0", "1.right.0", "2.left.0", "2.right.0", "5"])
def test_a_permuted_channel_is_found_in_its_layer(layer: str, network, path, images, exported) -> None:
    edited(path, permuted(f"{layer}.weight"))
    assert f" of layer '{layer}'), whose output differs by " in parting(network, path, images, exported)


@pytest.mark.parametrize("statistic", ["running_mean", "running_var"])
def test_a_statistic_of_a_norm_layer_off_by_one_percent_is_found_at_the_layer_it_is_folded_into(
    statistic: str, network, path, images
) -> None:
    getattr(network[2].left[1], statistic)[:] *= 1.01
    assert " (Conv of layer '2.left.0'), whose output differs by 0.0" in parting(network, path, images)


def test_another_operation_is_found(network, path, images, exported) -> None:
    edited(path, other_activation)
    assert parting(network, path, images, exported).startswith(
        "the first operation that differs is 'node_relu' (Abs), whose "
    )


def test_where_no_comparison_is_possible_the_place_is_named_all_the_same(network, path, images) -> None:
    edited(path, not_a_number)
    with pytest.raises(ParityError, match=r"^ONNX Runtime gives a logit that is not a finite number at .* '2.right.0'"):
        parting(network, path, images)


def test_what_torch_itself_does_wrong_is_not_blamed_on_the_file(network, path, images) -> None:
    with torch.no_grad():
        network[5].weight.fill_(torch.nan)
    export_onnx(network, EXAMPLE, path, metadata={})
    with pytest.raises(ParityError) as caught:
        parting(network, path, images)
    assert str(caught.value).startswith("torch in float64 gives a logit that is not a finite number at batch 1")
    assert "operation" not in str(caught.value)


class Growing(nn.Module):
    """What an exporter that gets an activation wrong does."""

    def forward(self, x: Tensor) -> Tensor:
        return x * 1.01 if torch.compiler.is_exporting() else x


@pytest.mark.parametrize(
    ("place", "words"),
    [(0, "between the input and layer '1'"), (1, "between layer '0' and layer '2.left.0'"), (6, "behind layer '5'")],
)
def test_what_the_exporter_changes_is_found_between_the_layers_of_the_network(
    place: int, words: str, network, images, tmp_path: Path
) -> None:
    network.insert(place, Growing())
    path = tmp_path / "model.onnx"
    export_onnx(network, EXAMPLE, path, metadata={})
    said = f"a fresh export is off in the same way: the exporter changes the network {words}"
    assert parting(network, path, images) == said


@pytest.mark.parametrize("layer", ["0", "2.right.0", "5"])
def test_a_layer_that_every_export_changes_is_found(layer: str, network, path, images) -> None:
    edited(path, permuted(f"{layer}.weight"))
    assert (
        parting(network, path, images, fresh=path)
        == f"a fresh export is off in the same way: the exporter changes the network in layer '{layer}'"
    )


class Distant(nn.Module):
    """Moves small numbers to where float32 has hardly a digit left for them, and back."""

    def forward(self, x: Tensor) -> Tensor:
        return (x + 1e5) - 1e5


def test_what_float32_cannot_hold_is_not_blamed_on_the_file(network, path, images) -> None:
    network.insert(5, Distant())
    export_onnx(network, EXAMPLE, path, metadata={})
    assert parting(network, path, images).startswith("torch in float32 is as far from float64: ")


def test_a_fault_of_one_setting_is_told_from_one_of_the_file(network, path, images) -> None:
    def case(optimisation: str, apart: float) -> Case:
        return Case(CPU, "real", 2, optimisation, apart, apart, 1e-7, 1.0, 1.0)

    parity = Parity((case("NONE", 1e-7), case("ALL", 0.1)), 1e-4)
    never = lambda path: pytest.fail("no export is needed")  # noqa: E731
    said = explain_divergence(parity, network, path, images, export=never, seed=0)
    assert said == ("only on CPUExecutionProvider with graph optimisation, small differences add up over the network")


def test_a_run_whose_export_is_another_network_ends_with_6_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "two_faced.py").write_text(
        "import torch\nfrom torch import nn\n\n\n"
        "class Net(nn.Sequential):\n"
        "    def forward(self, x):\n"
        "        return super().forward(x) * (1.5 if torch.compiler.is_exporting() else 1.0)\n\n\n"
        "def net(num_classes):\n"
        "    body = nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(2)\n"
        "    return Net(*body, nn.Flatten(), nn.Linear(32, num_classes))\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "step.md"))
    monkeypatch.setattr(sys, "path", sys.path.copy())
    (tmp_path / "config.yaml").write_text(
        "{model: 'two_faced:net', target_flops: 0.9, recipe: {epochs: 1, batch_size: 128, align: 1}, preflight: false,"
        " validation: {latency_s: 0.1}, threads: 1, device: cpu}"
    )
    assert main(["run", "--config", "config.yaml", "--output", "out", "--quiet"]) == 6
    said = capsys.readouterr().err
    assert said.startswith("atopipe: the delivered model is not the trained one: parity.max_rel_diff = ")
    assert said.count("a fresh export is off in the same way: the exporter changes the network behind layer '5'") == 1
    assert not (tmp_path / "out/bundle").exists()
    suite = ElementTree.parse(tmp_path / "out/junit.xml").getroot()[0]  # noqa: S314 - our own file
    failed = [case.get("name") for case in suite if case.find("failure") is not None]
    assert failed[:3] == ["parity.max_rel_diff", "parity.float64_rel_diff", "parity.rounding_ratio"]
    assert (tmp_path / "step.md").read_text() == (tmp_path / "out/summary.md").read_text() + "\n"
