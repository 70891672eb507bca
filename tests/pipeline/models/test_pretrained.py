"""Weights from files: what is taken over, what starts anew, what is refused."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from atopipe.pipeline.models.pretrained import load_weights
from atopipe.pipeline.system.errors import MissingError, UsageError


def network(classes: int = 10, width: int = 8) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.Flatten(), nn.Linear(36 * width, classes))


@pytest.mark.parametrize("wrapped", [None, "state_dict", "model"])
def test_a_state_dict_of_torch_is_taken_over(tmp_path: Path, wrapped: str | None) -> None:
    source, target, path = network(), network(), tmp_path / "w.pt"
    state = {f"module.{name}": tensor for name, tensor in source.state_dict().items()}
    torch.save({wrapped: state, "epoch": 3} if wrapped else state, path)
    assert load_weights(target, path, 10) == f"from '{path}'"
    for name, tensor in source.state_dict().items():
        assert torch.equal(target.state_dict()[name], tensor)


def test_the_head_starts_anew_for_another_number_of_classes(tmp_path: Path) -> None:
    source, target, path = network(1000), network(10), tmp_path / "w.safetensors"
    save_file(source.state_dict() | {"extra": torch.zeros(1)}, path)
    fresh = target.get_submodule("3").weight.clone()
    said = load_weights(target, path, 10)
    assert said == (
        f"from '{path}'; '3.weight', '3.bias' re-initialised for 10 classes instead of 1000; 'extra' not used"
    )
    assert torch.equal(target.get_submodule("3").weight, fresh)
    assert torch.equal(target.get_submodule("0").weight, source.get_submodule("0").weight)


def refusal(model: nn.Module, path: Path) -> str:
    with pytest.raises(UsageError) as caught:
        load_weights(model, path, 10)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_another_networks_weights_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_file(network(width=4).state_dict(), path)
    assert refusal(network(), path) == (
        f"--weights '{path}' belongs to another network: its '0.weight' is [4, 3, 3, 3], not [8, 3, 3, 3]; "
        "give one of this model"
    )
    save_file(nn.Linear(2, 2).state_dict(), path)
    assert "it lacks '0.weight', '0.bias' and " in refusal(network(), path)


def test_what_is_no_file_of_tensors_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    with pytest.raises(MissingError, match="does not exist: give the path of a file of weights"):
        load_weights(network(), path, 10)
    torch.save(network(), path)  # a pickled module could run code when it is loaded
    assert "cannot be read (UnpicklingError): give safetensors, or a state dict" in refusal(network(), path)
    torch.save({"epoch": 3}, path)
    assert "cannot be read (ValueError)" in refusal(network(), path)
