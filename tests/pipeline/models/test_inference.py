"""Networks as functions: in the arithmetic of ONNX Runtime, whatever torch is set to."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from atopipe.pipeline.models.inference import as_function


class Asking(nn.Module):
    """Notes how torch would compute float32 while it runs."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def forward(self, images: Tensor) -> Tensor:
        backends = torch.backends
        parts = (backends.cudnn.conv, backends.cuda.matmul, backends.mkldnn.conv, backends.mkldnn.matmul)
        self.found = [part.fp32_precision for part in parts]
        return images.mean((2, 3))


@pytest.fixture
def hasty() -> Iterator[None]:
    """What many training scripts begin with."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    yield
    torch.set_float32_matmul_precision(before)


@pytest.mark.usefixtures("hasty")
def test_a_network_runs_in_whole_float32_whatever_torch_is_set_to() -> None:
    network = Asking()
    as_function(network, torch.device("cpu"))(np.zeros((1, 3, 4, 4), np.float32))
    assert network.found == ["ieee"] * 4
    assert torch.get_float32_matmul_precision() == "medium"
    assert torch.backends.cudnn.conv.fp32_precision == "tf32"


@pytest.mark.usefixtures("hasty")
def test_products_are_as_near_to_float64_as_float32_is() -> None:
    """Where the processor multiplies in bfloat16, what torch is set to would be off by a thousandth."""
    torch.manual_seed(0)
    network, images = nn.Sequential(nn.Flatten(), nn.Linear(512, 16)), torch.randn(64, 2, 16, 16)
    got = as_function(network, torch.device("cpu"))(images.numpy())
    with torch.no_grad():
        wanted = images.flatten(1).double() @ network[1].weight.double().T + network[1].bias.double()
    assert np.abs(got - wanted.numpy()).max() < 1e-5
