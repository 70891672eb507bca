"""Networks that return the logits among other things, and those whose logits are no function of the image."""

import copy
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from atopipe.ato.discovery.find import find_groups
from atopipe.export.onnx import export_onnx
from atopipe.pipeline.models.build import ModelError
from atopipe.pipeline.models.inference import in_float64
from atopipe.pipeline.models.outputs import find_logits, give_logits
from atopipe.validate.session import open_session

IMAGES = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """`answer` makes what is returned of the logits [B, 4] and the features [B, 8]."""

    def __init__(self, answer: Callable[[nn.Module, Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
        self.head, self.answer = nn.Linear(8, 4), answer

    def forward(self, images: Tensor) -> Any:
        features = self.body(images).flatten(1)
        return self.answer(self, self.head(features), features)


class Pair(NamedTuple):
    features: Tensor
    logits: Tensor


class ModelOutput(OrderedDict[str, Any]):
    """As transformers has it: a mapping whose entries are attributes as well."""

    def __getattr__(self, name: str) -> Any:
        return self[name]


ANSWERS: dict[str, Callable[[nn.Module, Tensor, Tensor], Any]] = {
    "tensor": lambda net, logits, features: logits,
    "first of a tuple": lambda net, logits, features: (logits, [features[:, None]]),
    "list": lambda net, logits, features: [logits, features],
    "second of a tuple": lambda net, logits, features: (features, logits),
    "dict": lambda net, logits, features: {"features": features, "logits": logits},
    "named tuple": lambda net, logits, features: Pair(features, logits),
    "model output": lambda net, logits, features: ModelOutput(loss=None, logits=logits),
    "probabilities when evaluated": lambda net, logits, features: (
        logits if net.training else (logits.softmax(1), logits)
    ),
}


def network(kind: str) -> nn.Module:
    torch.manual_seed(0)
    return Net(ANSWERS[kind])


@pytest.mark.parametrize("kind", ANSWERS)
def test_the_logits_are_trained_copied_pruned_and_exported_alone(kind: str, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    model, plain = network(kind), network("tensor")
    state = torch.random.get_rng_state()
    found = give_logits(model, find_logits(model, IMAGES, 4, "it"))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert found.training
    assert list(found.state_dict()) == list(plain.state_dict())
    for training in (True, False):
        assert torch.equal(copy.deepcopy(found).train(training)(IMAGES), plain.train(training)(IMAGES))
        plain = network("tensor")
    assert find_groups(found, IMAGES[:1], torch.Generator().manual_seed(0)).total == 8
    export_onnx(found, IMAGES[:1], tmp_path / "m.onnx", metadata={})
    session = open_session(tmp_path / "m.onnx")
    np.testing.assert_allclose(session.run(IMAGES.numpy()), plain.eval()(IMAGES).detach().numpy(), atol=1e-5)
    assert in_float64(found.eval())(IMAGES.numpy()).shape == (2, 4)


def test_two_tensors_that_may_be_logits_are_refused() -> None:
    model = Net(lambda net, logits, features: (logits, logits.relu()))
    with pytest.raises(ModelError) as caught:
        find_logits(model, IMAGES, 4, "model 'x'")
    assert str(caught.value) == (
        "model 'x' returns a tuple with 2 tensors of shape [images, 4]: return the logits alone, "
        "or in a dict under the name 'logits'"
    )


def test_what_holds_no_logits_is_left_to_the_search_for_groups() -> None:
    assert find_logits(Net(lambda net, logits, features: SimpleNamespace(out=logits)), IMAGES, 4, "it") is None
    assert find_logits(nn.Linear(5, 4), IMAGES, 4, "it") is None


def test_a_norm_layer_without_statistics_is_named() -> None:
    model = network("tensor")
    model.body[1] = nn.BatchNorm2d(8, track_running_stats=False)
    with pytest.raises(ModelError) as caught:
        find_logits(model, IMAGES, 4, "model 'x'")
    assert str(caught.value) == (
        "model 'x' gives an image other logits when others are in its batch: "
        "layer 'body.1' has track_running_stats=False: set it to True"
    )


@pytest.mark.parametrize(
    "random",
    [
        lambda net, logits, features: logits + torch.randn_like(logits),
        lambda net, logits, features: nn.functional.dropout(logits, 0.5, training=True),
    ],
)
def test_logits_that_are_drawn_at_random_are_refused(random: Callable[[nn.Module, Tensor, Tensor], Tensor]) -> None:
    with pytest.raises(ModelError, match=r"^it gives other logits each time it evaluates the same images: draw random"):
        find_logits(Net(random), IMAGES, 4, "it")


def test_a_feature_extractor_is_compared_in_the_mode_it_is_in() -> None:
    """A copy of torchvision's is in training mode whatever it is copied from."""
    from torchvision.models import resnet18
    from torchvision.models.feature_extraction import create_feature_extractor

    torch.manual_seed(0)
    model = create_feature_extractor(resnet18(num_classes=4), {"fc": "logits"})
    found = give_logits(model, find_logits(model, IMAGES, 4, "it")).eval()
    exact = in_float64(found)(IMAGES.numpy())
    with torch.no_grad():
        np.testing.assert_allclose(exact, found(IMAGES).numpy(), atol=1e-4)
