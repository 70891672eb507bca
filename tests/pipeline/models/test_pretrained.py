"""Starting weights from files: what is taken over, what starts again, what is refused, and what is said."""

import argparse
import collections
from collections.abc import Callable, Mapping
from pathlib import Path, PureWindowsPath
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from atopipe.pipeline.models.pretrained import load_checkpoint
from atopipe.pipeline.models.weights.checkpoint import read_checkpoint
from atopipe.pipeline.system.errors import MissingError, UsageError

State = Mapping[str, Tensor]


class Net(nn.Module):
    """A body, and a head under any name."""

    def __init__(self, classes: int = 10, *, width: int = 8, head: str = "fc") -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3)
        self.bn1 = nn.BatchNorm2d(width)
        self.add_module(head, nn.Linear(width, classes))
        self.name_of_head = head

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.get_submodule(self.name_of_head)(self.bn1(self.conv1(images)).mean((2, 3)))
        return logits


def net(classes: int = 10) -> nn.Module:
    return Net(classes)


def load(
    model: nn.Module,
    path: Path,
    classes: int = 10,
    build: Callable[[int], nn.Module] = net,
    keep_head: bool | None = None,
) -> str:
    who = f"--weights '{path}'"
    return load_checkpoint(model, read_checkpoint(path, who), classes, build=build, keep_head=keep_head, who=who)


def prefixed(prefix: str, state: State) -> dict[str, Tensor]:
    return {f"{prefix}{name}": tensor for name, tensor in state.items()}


def stale(state: State) -> dict[str, Tensor]:
    return {name: torch.zeros_like(tensor) for name, tensor in state.items()}


def trained(state: State) -> dict[str, Any]:
    """As a script leaves it that saves all that it knows."""
    optimizer = torch.optim.AdamW(Net().parameters())
    return {
        "model": state,
        "optimizer": optimizer.state_dict(),
        "args": argparse.Namespace(lr=0.1, output=Path("runs"), device=torch.device("cpu"), dtype=torch.float16),
        "best": np.float64(0.9),
        "epoch": np.int64(3),
        "dtype": np.dtype("float32"),
        "confusion": np.eye(3),
        "history": collections.defaultdict(list, {"loss": [0.1]}),
        "last": collections.deque([1.0], maxlen=3),
        "shape": torch.Size([3, 32, 32]),
        "windows": PureWindowsPath("C:/runs"),
    }


LAYOUTS: dict[str, Callable[[State], object]] = {
    "plain": dict,
    "ordered": collections.OrderedDict,
    "data parallel": lambda state: prefixed("module.", state),
    "compiled": lambda state: prefixed("_orig_mod.", state),
    "compiled, then parallel": lambda state: {"state_dict": prefixed("module._orig_mod.", state)},
    "lightning": lambda state: {
        "state_dict": {**prefixed("model.", state), "criterion.weight": torch.ones(10)},
        "hyper_parameters": {"lr": 0.1},
        "callbacks": {"ModelCheckpoint{'monitor': 'val'}": {"best_model_score": torch.tensor(0.9)}},
    },
    "lightning, network in a network": lambda state: {"state_dict": prefixed("model.net.", state)},
    "backbone": lambda state: {"state_dict": prefixed("backbone.", state)},
    "encoder of a contrastive method": lambda state: {"state_dict": prefixed("module.encoder_q.", state)},
    "encoder": lambda state: prefixed("encoder.", state),
    "net": lambda state: {"net": prefixed("module.", state), "acc": 95.1, "epoch": 200},
    "torchvision's references": trained,
    "model_state_dict": lambda state: {"epoch": 3, "model_state_dict": dict(state), "loss": torch.tensor(0.1)},
    "model_state": lambda state: {"model_state": dict(state), "optimizer_state": {"step": 1}},
    "timm's averaged weights": lambda state: {"state_dict": stale(state), "state_dict_ema": dict(state)},
    "torchvision's averaged weights": lambda state: {
        "model": stale(state),
        "model_ema": {"n_averaged": torch.tensor(9), **prefixed("module.", state)},
    },
    "ema": lambda state: {"ema": {"ema_state_dict": prefixed("ema_model.", state)}, "model": stale(state)},
    "teacher and student": lambda state: {
        "student": prefixed("module.backbone.", stale(state)),
        "teacher": prefixed("backbone.", state),
    },
    "parameters": lambda state: (
        {name: nn.Parameter(t, t.is_floating_point()) for name, t in state.items()}
        if all(t.is_floating_point() for t in state.values())
        else {name: nn.Parameter(t) if t.is_floating_point() else t for name, t in state.items()}
    ),
    "arrays": lambda state: {"params": {name: tensor.numpy() for name, tensor in state.items()}},
    "list": lambda state: [dict(state), {"lr": 0.1}],
    "half": lambda state: {n: t.half() if t.is_floating_point() else t for n, t in state.items()},
    "bfloat16": lambda state: {n: t.bfloat16() if t.is_floating_point() else t for n, t in state.items()},
    "no counters": lambda state: {n: t for n, t in state.items() if not n.endswith("num_batches_tracked")},
}


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_is_taken_over(tmp_path: Path, layout: str, legacy: bool) -> None:
    source, target, path = net(), net(), tmp_path / "w.bin"
    torch.save(LAYOUTS[layout](source.state_dict()), path, _use_new_zipfile_serialization=not legacy)
    said = load(target, path)
    exact = layout not in ("half", "bfloat16")
    assert ("cast to float32" in said) is not exact
    for name, tensor in source.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            torch.testing.assert_close(target.state_dict()[name], tensor, rtol=0 if exact else 0.01, atol=0)
    assert all(t.dtype == torch.float32 for t in target.state_dict().values() if t.is_floating_point())


def test_what_was_taken_is_said(tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    torch.save({"state_dict": {**prefixed("model.", net().state_dict()), "loss.weight": torch.ones(3)}}, path)
    assert (
        load(net(), path) == "9 of 9 tensors loaded (key 'state_dict', without prefix 'model.'); 'loss.weight' not used"
    )


def test_a_file_without_the_prefix_that_the_network_has(tmp_path: Path) -> None:
    class Wrapper(nn.Module):
        def __init__(self, classes: int) -> None:
            super().__init__()
            self.backbone = Net(classes)

    source, target, path = net(), Wrapper(10), tmp_path / "w.safetensors"
    save_file(source.state_dict(), path)
    assert load(target, path, build=Wrapper) == "9 of 9 tensors loaded"
    assert torch.equal(target.backbone.conv1.weight, source.get_parameter("conv1.weight"))


@pytest.mark.parametrize("name", ["fc", "classifier", "head", "_fc", "logits"])
def test_a_head_of_any_name_starts_again_for_other_classes(tmp_path: Path, name: str) -> None:
    path, source = tmp_path / "w.safetensors", Net(1000)
    save_file(source.state_dict() | {"extra": torch.zeros(1)}, path)
    target = Net(7, head=name)
    fresh = target.get_submodule(name).weight.clone()
    said = load(target, path, 7, lambda classes: Net(classes, head=name))
    assert torch.equal(target.get_submodule(name).weight, fresh)
    assert torch.equal(target.conv1.weight, source.conv1.weight)
    assert said.startswith(f"7 of 9 tensors loaded; '{name}.bias', '{name}.weight' re-initialised for 7 classes")
    assert ("instead of 1000" in said) is (name == "fc")
    assert said.endswith("; 'extra' not used" if name == "fc" else "; 'extra', 'fc.bias' and 1 more not used")


def test_the_head_is_kept_or_not_as_asked(tmp_path: Path) -> None:
    path, source = tmp_path / "w.pt", net()
    torch.save(source.state_dict(), path)

    def kept(**how: Any) -> bool:
        target = net()
        load(target, path, **how)
        return torch.equal(target.get_parameter("fc.weight"), source.get_parameter("fc.weight"))

    assert kept()
    assert kept(keep_head=True)
    assert not kept(keep_head=False)
    renamed = Net(head="classifier")
    load(renamed, path, build=lambda classes: Net(classes, head="classifier"), keep_head=True)
    assert torch.equal(renamed.get_parameter("classifier.weight"), source.get_parameter("fc.weight"))


def test_the_head_makes_no_difference_to_what_is_drawn_after_it(tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    torch.save(Net(1000).state_dict(), path)
    torch.manual_seed(3)
    target, drawn = net(), torch.rand(1)
    torch.manual_seed(3)
    net()
    load(target, path)
    assert torch.equal(torch.rand(1), drawn)


def refusal(model: nn.Module, path: Path, classes: int = 10, **how: Any) -> str:
    with pytest.raises(UsageError) as caught:
        load(model, path, classes, **how)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_head_that_cannot_be_kept_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    torch.save(Net(1000).state_dict(), path)
    remedy = "leave --keep-head out, and a new one is trained"
    assert refusal(net(), path, keep_head=True) == (
        f"--keep-head: --weights '{path}' has a head for 1000 classes, where the data have 10: {remedy}"
    )
    renamed = {"build": lambda classes: Net(classes, head="classifier"), "keep_head": True}
    assert refusal(Net(head="classifier"), path, **renamed) == (
        f"--keep-head: --weights '{path}' has no 'classifier.bias', the head of this model: {remedy}"
    )


def test_another_networks_weights_are_refused_by_name_and_shape(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_file(Net(width=4).state_dict(), path)
    assert refusal(net(), path) == (
        f"--weights '{path}' belongs to another network: its 'conv1.weight' is [4, 3, 3, 3], not [8, 3, 3, 3] "
        "(and 5 more differ); give weights of this model, or the --model-args it was trained with"
    )
    save_file({"stem.weight": torch.ones(2), "stem.bias": torch.ones(2)}, path)
    assert refusal(net(), path) == (
        f"--weights '{path}' belongs to another network: none of its 2 tensors, such as 'stem.bias', 'stem.weight', "
        "fits one of this model, such as 'conv1.weight', 'conv1.bias' and 7 more; give weights of this model"
    )
    save_file({n: t for n, t in net().state_dict().items() if "running" not in n} | {"x": torch.ones(1)}, path)
    assert refusal(net(), path) == (
        f"--weights '{path}' belongs to another network: it lacks 'bn1.running_mean', 'bn1.running_var'; "
        "it has 'x' instead; give weights of this model"
    )


def test_a_fixed_head_is_no_head_that_could_start_again(tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    torch.save(Net(1000).state_dict(), path)
    assert "'fc.weight' is [1000, 8], not [7, 8]" in refusal(Net(7), path, 10, build=lambda classes: Net(7))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_diverged_network_is_refused(tmp_path: Path, value: float) -> None:
    path, source = tmp_path / "w.pt", net()
    with torch.no_grad():
        source.get_parameter("conv1.weight")[0, 0, 0] = value
    torch.save(source.state_dict(), path)
    assert refusal(net(), path) == (
        f"--weights '{path}' has values that are not finite numbers, 3 in 'conv1.weight': "
        "give weights from before the training diverged"
    )


def test_what_holds_no_tensors_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    torch.save({"epoch": 3, "losses": [0.1]}, path)
    assert "holds no tensors by name: give safetensors, or a state dict" in refusal(net(), path)
    with pytest.raises(MissingError, match="does not exist: give the path of a file of weights"):
        load(net(), tmp_path / "nothing.pt")
