"""Layers whose weights are computed from others or are not floats: folded, kept as they are, or refused by name."""

import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune

from atopipe.ato.discovery.find import find_groups
from atopipe.pipeline.models.wrappers import unwrapped

EXAMPLE = torch.rand(1, 3, 16, 16)


class Halved(nn.Module):
    """A user's own parametrization."""

    def forward(self, weight: Tensor) -> Tensor:
        return weight / 2


def network() -> nn.Sequential:
    convolutions = nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU()
    return nn.Sequential(*convolutions, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))


def old_weight_norm(layer: nn.Module) -> None:
    with pytest.warns(FutureWarning):
        nn.utils.weight_norm(layer)


@pytest.mark.parametrize("norm", [old_weight_norm, parametrizations.weight_norm], ids=["old", "new"])
def test_weight_norm_is_folded_into_parameters_that_are_trained(norm: Callable[[nn.Module], object]) -> None:
    model, notes = network(), list[str]()
    for place in (0, 2, 8):
        norm(model[place])
    before = model(EXAMPLE)
    folded = unwrapped(model, notes.append)
    assert notes == ["weight_norm folded into the weights of 3 layers"]
    torch.testing.assert_close(folded(EXAMPLE), before)
    assert {name for name, parameter in folded.named_parameters() if parameter.requires_grad} == {
        f"{place}.{name}" for place in (0, 2, 4, 8) for name in ("weight", "bias")
    }
    groups = find_groups(folded, EXAMPLE, torch.Generator().manual_seed(0))
    assert sorted(s.name for s in groups.sets) == ["0", "2", "4"]


@pytest.mark.parametrize(
    "constrain",
    [
        parametrizations.spectral_norm,
        parametrizations.orthogonal,
        lambda layer: parametrize.register_parametrization(layer, "weight", Halved()),
        lambda layer: parametrize.register_parametrization(layer, "bias", Halved()),
    ],
    ids=["spectral", "orthogonal", "own", "own bias"],
)
def test_a_width_beside_a_parametrized_layer_is_kept_with_its_reason(constrain: Callable[[nn.Module], object]) -> None:
    model = network()
    constrain(model[2])
    model = unwrapped(model, lambda note: None)
    groups = find_groups(model, EXAMPLE, torch.Generator().manual_seed(0))
    assert [s.name for s in groups.sets] == ["4"]
    tensor = "bias" if hasattr(model[2].parametrizations, "bias") else "weight"
    reason = f"'2' computes its {tensor} from other tensors: fold it into a plain one to prune them"
    assert {width.name: width.reason for width in groups.unprunable if width.name != "8"} == {"2": reason, "0": reason}


def converted(model: nn.Module) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch announces that these go
        scale = torch.quantize_per_tensor(torch.rand(3), 0.1, 0, torch.qint8)
    model.register_buffer("scale", scale)
    return model


class Linear(nn.Linear):
    """As a library of quantised layers names it."""


Linear.__module__ = "torch.ao.nn.quantized.dynamic"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            nn.utils.spectral_norm,
            "a hook computes the weight of '2': use torch.nn.utils.parametrizations.spectral",
        ),
        (
            lambda layer: prune.l1_unstructured(layer, "weight", 0.5),
            "a hook computes the weight of '2': make it a plain parameter with torch.nn.utils.prune.remove",
        ),
        (converted, "'2.scale' in it is a Tensor of qint8: build the network with plain tensors"),
        (
            lambda layer: layer.add_module("last", Linear(2, 2)),
            "'2.last' in it is quantised (Linear): build the network in float32 (--variants fp32,int8 quantises the ",
        ),
    ],
    ids=["spectral", "pruned", "tensor", "layer"],
)
def test_what_cannot_be_folded_is_refused_with_the_remedy(change: Callable[[nn.Module], object], words: str) -> None:
    model = network()
    change(model[2])
    with pytest.raises(ValueError) as caught:
        unwrapped(model, lambda note: None)
    assert str(caught.value).startswith(words)


def test_stubs_of_a_network_that_could_be_quantised_stay() -> None:
    stubs = torch.ao.quantization.QuantStub(), network(), torch.ao.quantization.DeQuantStub()
    assert unwrapped(nn.Sequential(*stubs), lambda note: None)(EXAMPLE).shape == (1, 4)


class Listed(nn.Module):
    """Layers in a plain list, or a list beside the modules that it names."""

    def __init__(self, hidden: bool) -> None:
        super().__init__()
        self.body = network()
        self.layers = [nn.Conv2d(3, 8, 3)] if hidden else [self.body[0]]


def test_layers_in_a_plain_list_are_refused_unless_they_are_parts_as_well() -> None:
    unwrapped(Listed(hidden=False), lambda note: None)
    with pytest.raises(ValueError) as caught:
        unwrapped(nn.Sequential(Listed(hidden=True)), lambda note: None)
    assert str(caught.value) == (
        "'0.layers' is a plain list of layers that nothing trains: use torch.nn.ModuleList or ModuleDict"
    )


def test_a_network_of_inference_mode_is_refused() -> None:
    with torch.inference_mode():
        model = network()
    with pytest.raises(ValueError, match=r"was built in torch.inference_mode\(\) and cannot be trained"):
        unwrapped(model, lambda note: None)
