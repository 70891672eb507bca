"""Networks of users as they come: how the number of classes gets in, wrappers, number formats, and what is refused."""

import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from atopipe.pipeline.config.load import load_config
from atopipe.pipeline.engine.workspace import Workspace
from atopipe.pipeline.models.build import CLASS_ARGUMENTS, ModelError, build_model
from atopipe.pipeline.models.contract import require_copyable, require_logits, require_trainable
from atopipe.pipeline.models.wrappers import unwrapped
from atopipe.pipeline.report.terminal import QuietDisplay

EXAMPLE = torch.rand(1, 3, 16, 16)


def network(classes: int = 4, channels: int = 3) -> nn.Module:
    body = nn.Conv2d(channels, 8, 3), nn.BatchNorm2d(8), nn.Dropout(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    return nn.Sequential(*body, nn.Linear(8, classes))


@pytest.fixture
def factories(tmp_path: Path) -> Iterator[Callable[[str], str]]:
    """Writes a file with `net`, and gives its name."""
    path = tmp_path / "net.py"

    def written(source: str) -> str:
        path.write_text(f"import torch\nfrom torch import nn\n{source}")
        sys.modules.pop(str(path), None)
        return f"{path}:net"

    yield written
    sys.modules.pop(str(path), None)


@pytest.mark.parametrize("argument", CLASS_ARGUMENTS)
def test_the_number_of_classes_gets_in_by_any_usual_name(factories: Callable[[str], str], argument: str) -> None:
    name = factories(f"def net(width=3, {argument}=1000):\n    return nn.Linear(width, {argument})\n")
    assert build_model(name, 7).get_parameter("weight").shape == (7, 3)


@pytest.mark.parametrize(
    "signature", ["*, n_classes", "**options", "classes=('a', 'b'), n_classes=3", "pretrained=False, num_labels=None"]
)
def test_what_takes_the_number_is_told_from_what_does_not(factories: Callable[[str], str], signature: str) -> None:
    value = {"**options": "options['num_classes']", "pretrained=False, num_labels=None": "num_labels"}
    name = factories(f"def net({signature}):\n    return nn.Linear(3, {value.get(signature, 'n_classes')})\n")
    assert build_model(name, 7).get_parameter("weight").shape == (7, 3)


@pytest.mark.parametrize("logits", [1000, 3, 1])
def test_another_number_of_logits_than_classes_is_refused(logits: int) -> None:
    with pytest.raises(ModelError) as caught:
        require_logits(network(logits), "model 'net.py:net'", EXAMPLE, 4)
    plural = "logit" if logits == 1 else "logits"
    assert str(caught.value) == (
        f"model 'net.py:net' gives {logits} {plural} for 4 classes: let it take the number of classes as an argument "
        "(num_classes, n_classes, classes, ...), or set it with --model-args"
    )


def test_a_run_is_refused_before_its_network_is_traced(factories: Callable[[str], str]) -> None:
    name = factories(
        "def net():\n    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 1000))\n"
    )
    workspace = Workspace(load_config(None, {"model.name": name, "target_flops": 0.5}), QuietDisplay())
    with pytest.raises(ModelError, match="gives 1000 logits for 10 classes: let it take the number of classes"):
        workspace.first_model()


@pytest.mark.parametrize("channels", [1, 4])
def test_a_network_for_other_channels_is_refused_with_cause_and_remedy(channels: int) -> None:
    with pytest.raises(ModelError) as caught:
        require_logits(network(4, channels), "model 'net.py:net'", EXAMPLE, 4)
    assert str(caught.value) == (
        f"model 'net.py:net' takes images of {channels} {'channel' if channels == 1 else 'channels'}, and every image "
        "is given as RGB: build it for 3 channels (in_chans=3, in_channels=3, ..., with --model-args where it takes "
        "one)"
    )


def test_what_is_looked_at_stays_as_it_was() -> None:
    model = network().train()
    model.get_submodule("1").eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    torch.manual_seed(1)
    drawn = torch.rand(1)
    torch.manual_seed(1)
    require_logits(model, "it", EXAMPLE, 4)
    assert torch.equal(torch.rand(1), drawn)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert [module.training for module in model] == [True, False, True, True, True, True]


class Other(nn.Module):
    """Returns something that others judge."""

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return {"logits": images.flatten(1)}


def test_other_outputs_and_failures_are_left_to_others() -> None:
    require_logits(Other(), "it", EXAMPLE, 4)
    require_logits(nn.Linear(3, 4), "it", EXAMPLE, 4)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_other_number_formats_are_cast_and_said(kind: torch.dtype) -> None:
    notes: list[str] = []
    model = unwrapped(network().to(kind), notes.append)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert notes == [f"network cast from {str(kind).removeprefix('torch.')} to float32"]


def test_wrappers_are_taken_off_wherever_they_are() -> None:
    notes: list[str] = []
    inner, whole = network(), nn.DataParallel(torch.compile(network()))  # type: ignore[arg-type]
    assert list(unwrapped(whole, notes.append).state_dict()) == list(inner.state_dict())
    parts = nn.Sequential(nn.DataParallel(inner), torch.compile(nn.Linear(4, 4)))  # type: ignore[arg-type]
    found = unwrapped(parts, notes.append)
    assert [type(module) for module in found] == [nn.Sequential, nn.Linear]
    assert notes == ["taken off the network: DataParallel and torch.compile"] * 2
    assert unwrapped(inner, notes.append) is inner
    assert len(notes) == 2


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:FutureWarning", "ignore:.*torch.jit.*:DeprecationWarning")
@pytest.mark.parametrize("nested", [False, True])
def test_torchscript_is_refused_with_the_remedy(factories: Callable[[str], str], nested: bool) -> None:
    where = "'0' in it" if nested else "it"
    traced = "torch.jit.trace(nn.Linear(3, 4), torch.zeros(1, 3))"
    name = factories(f"def net():\n    return {f'nn.Sequential({traced})' if nested else traced}\n")
    with pytest.raises(ModelError) as caught:
        build_model(name, 4)
    assert str(caught.value) == (
        f"model factory '{name}' cannot be used: {where} is a "
        "TorchScript module, which cannot be pruned: build the torch.nn.Module instead"
    )


class Changed(nn.Module):
    """A network whose `forward` does something with the logits."""

    def __init__(self, change: Callable[[nn.Module, Tensor], object]) -> None:
        super().__init__()
        self.inner, self.change = network(), change

    def forward(self, images: Tensor) -> object:
        return self.change(self, self.inner(images))


def fails_in_training(module: nn.Module, logits: Tensor) -> Tensor:
    if module.training:
        raise RuntimeError("no labels given")
    return logits


UNTRAINABLE: dict[str, tuple[nn.Module, str]] = {
    "frozen": (network().requires_grad_(False), "set requires_grad to True"),
    "detached": (Changed(lambda module, logits: logits.detach()), "take no_grad, detach and numpy out"),
    "tuple": (Changed(lambda module, logits: (logits, logits) if module.training else logits), "returns a tuple"),
    "fails": (Changed(fails_in_training), "fails in training mode: RuntimeError: no labels given"),
    "fewer logits": (Changed(lambda module, logits: logits[:, :2] if module.training else logits), r"tensor \[4, 2\]"),
}


@pytest.mark.parametrize("kind", UNTRAINABLE)
def test_a_network_that_cannot_be_trained_is_refused(kind: str) -> None:
    model, words = UNTRAINABLE[kind]
    with pytest.raises(ModelError, match=words):
        require_trainable(model, "it", EXAMPLE, 4)


def test_a_network_that_starts_with_nan_is_refused() -> None:
    model = network()
    model.get_parameter("0.weight").data[0] = float("nan")
    with pytest.raises(ModelError, match=r"not finite numbers in '0\.weight'"):
        require_trainable(model, "it", EXAMPLE, 4)


def test_gradients_that_its_code_has_switched_off_are_named() -> None:
    with torch.no_grad(), pytest.raises(ModelError, match=r"take torch\.set_grad_enabled\(False\) out"):
        require_trainable(network(), "it", EXAMPLE, 4)


def test_trying_a_step_changes_nothing() -> None:
    model = network()
    before, state = {name: tensor.clone() for name, tensor in model.state_dict().items()}, torch.get_rng_state()
    require_trainable(model, "it", EXAMPLE, 4)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("kept", [threading.Lock(), (number for number in range(3))], ids=["lock", "generator"])
def test_a_network_that_cannot_be_copied_is_refused(kept: object) -> None:
    model = network()
    vars(model)["kept"] = kept
    with pytest.raises(ModelError, match="cannot be copied"):
        require_copyable(model, "it")


def test_a_program_of_export_is_refused(factories: Callable[[str], str]) -> None:
    images = "(torch.zeros(2, 3, 16, 16),)"
    name = factories(f"def net():\n    return torch.export.export(nn.Conv2d(3, 4, 3), {images}).module()\n")
    with pytest.raises(ModelError, match=r"a program of torch\.export, which has one mode"):
        build_model(name, 4)


@pytest.mark.parametrize(
    ("name", "argument", "remedy"),
    [
        ("resnet18", "num_classes", "leave it out, the data say how many classes there are"),
        ("resnet18", "weights", "give --weights"),
        ("timm/resnet18", "pretrained", "give --weights default"),
        ("timm/resnet18", "checkpoint_path", "give --weights FILE"),
    ],
)
def test_arguments_that_would_be_lost_or_off_the_record_are_refused(name: str, argument: str, remedy: str) -> None:
    with pytest.raises(ModelError, match=f"--model-args {argument} would not count for model '{name}': {remedy}"):
        build_model(name, 4, {argument: 5})


def test_the_number_of_classes_of_a_factory_is_that_of_the_data(factories: Callable[[str], str]) -> None:
    name = factories("def net(n_classes):\n    return nn.Linear(3, n_classes)\n")
    with pytest.raises(ModelError, match="--model-args n_classes would not count"):
        build_model(name, 4, {"n_classes": 5})


class Averaged(nn.Module):
    """Trains one network, and evaluates a copy with averaged weights."""

    def __init__(self) -> None:
        super().__init__()
        self.online, self.average = network(), network()

    def forward(self, images: Tensor) -> Tensor:
        return (self.online if self.training else self.average)(images)  # type: ignore[no-any-return]


def test_a_network_that_evaluates_other_layers_than_it_trains_is_refused() -> None:
    with pytest.raises(ModelError) as caught:
        require_trainable(Averaged(), "model 'net.py:net'", EXAMPLE, 4)
    assert str(caught.value) == (
        "model 'net.py:net' trains other layers ('online.0') than it evaluates ('average.0'): give the network alone, "
        "without its copy of averaged weights"
    )


class Holder(nn.Module):
    """Holds a network, and does not say how to run it, as averages of weights in libraries do."""

    def __init__(self) -> None:
        super().__init__()
        self.module = network()


def test_averages_and_holders_are_taken_off() -> None:
    notes: list[str] = []
    core = network()
    averaged = torch.optim.swa_utils.AveragedModel(core)
    assert isinstance(unwrapped(averaged, notes.append), nn.Sequential)
    assert isinstance(unwrapped(Holder(), notes.append), nn.Sequential)
    assert notes == ["taken off the network: AveragedModel", "taken off the network: Holder"]
