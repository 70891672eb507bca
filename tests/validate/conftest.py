"""A small network, exported once: the real file which the real runtime loads."""

import copy
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from atopipe.export.onnx import export_onnx

Network = Callable[[np.ndarray], np.ndarray]


def build(width: int) -> nn.Sequential:
    """Make a network with a batch norm whose statistics are not those of a fresh one."""
    torch.manual_seed(width)
    body = [nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, width, 3), nn.ReLU()]
    net = nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 4))
    nn.init.normal_(net[1].running_mean)
    nn.init.uniform_(net[1].running_var, 0.5, 2.0)
    return net.eval()


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Width of the network -> its ONNX file, for images [B, 3, 16, 16]."""
    folder = tmp_path_factory.mktemp("models")
    paths = {width: folder / f"{width}.onnx" for width in (8, 32)}
    for width, path in paths.items():
        export_onnx(build(width), torch.zeros(1, 3, 16, 16), path, metadata={"labels": '["a", "b", "c", "d"]'})
    return paths


@pytest.fixture
def net() -> nn.Sequential:
    """The network of `models[8]`."""
    return build(8)


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(0).normal(0.3, 1.2, (20, 3, 16, 16)).astype(np.float32)


@pytest.fixture
def as_function() -> Callable[[nn.Module], Network]:
    def wrap(net: nn.Module) -> Network:
        def network(images: np.ndarray) -> np.ndarray:
            with torch.no_grad():
                return net(torch.from_numpy(images)).numpy()

        return network

    return wrap


@pytest.fixture
def as_exact() -> Callable[[nn.Module], Network]:
    """A network in float64: its logits are the true ones."""

    def wrap(net: nn.Module) -> Network:
        exact = copy.deepcopy(net).double()

        def network(images: np.ndarray) -> np.ndarray:
            with torch.no_grad():
                return exact(torch.from_numpy(images).double()).numpy()

        return network

    return wrap
