"""Small networks with every kind of wiring, and a generator per test."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn


def conv_norm(inputs: int, outputs: int, **options: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1, bias=False, **options), nn.BatchNorm2d(outputs))


class Residual(nn.Module):
    """A stem, two residual blocks on one stream, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_norm(3, 16)
        self.inner = nn.ModuleList(conv_norm(16, 12) for _ in range(2))
        self.outer = nn.ModuleList(conv_norm(12, 16) for _ in range(2))
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        for inner, outer in zip(self.inner, self.outer, strict=True):
            x = (x + outer(inner(x).relu())).relu()
        return self.head(x.mean((2, 3)))


class Inverted(nn.Module):
    """Expansion, depthwise convolution, squeeze-excite, projection; ReLU6 and hard-swish."""

    def __init__(self) -> None:
        super().__init__()
        self.expand, self.depthwise = conv_norm(3, 16), conv_norm(16, 16, groups=16)
        self.squeeze, self.excite = nn.Conv2d(16, 8, 1), nn.Conv2d(8, 16, 1)
        self.project, self.head = conv_norm(16, 8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.relu6(self.depthwise(nn.functional.hardswish(self.expand(x))))
        x = x * self.excite(self.squeeze(x.mean((2, 3), keepdim=True)).relu()).sigmoid()
        return self.head(self.project(x).mean((2, 3)))


class Dense(nn.Module):
    """Concatenations with a norm after them, as in DenseNet, and a PReLU with one slope for all channels."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 12, 3, padding=1)
        self.norm, self.third, self.head = nn.BatchNorm2d(20), nn.Conv2d(20, 8, 1), nn.Linear(8, 5)
        self.slope = nn.PReLU()

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        x = self.norm(torch.cat([x, self.second(x.relu())], 1)).relu()
        return self.head(self.slope(self.third(x)).mean((2, 3)))


class Grouped(nn.Module):
    """Grouped convolutions with 4 and 2 blocks, and transposed ones: plain, depthwise and grouped."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.four, self.two = conv_norm(3, 16), conv_norm(16, 16, groups=4), conv_norm(16, 24, groups=2)
        self.up = nn.ConvTranspose2d(24, 12, 2, stride=2)
        self.wider = nn.ConvTranspose2d(12, 12, 2, stride=2, groups=12)
        self.pairs = nn.ConvTranspose2d(12, 8, 1, groups=2)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.two(self.four(self.stem(x).relu()).relu()).relu()
        return self.head(self.pairs(self.wider(self.up(x).relu()).relu()).relu().mean((2, 3)))


class Flattened(nn.Module):
    """Plain convolutions with biases, PReLU, and a flatten before the linear layers, as in VGG."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1),
            nn.PReLU(8),
            nn.MaxPool2d(2),
            nn.Conv2d(8, 12, 3),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(2),
        )
        self.hidden, self.head = nn.Linear(48, 10), nn.Linear(10, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.hidden(self.features(x).flatten(1)).relu())


class Middle(nn.Module):
    """Two convolutions with `between` in the middle: what the probe must judge."""

    def __init__(self, between: Callable[[Tensor], Tensor], norm: nn.Module | None = None) -> None:
        super().__init__()
        self.first, self.norm, self.between = nn.Conv2d(3, 8, 3, padding=1), norm or nn.BatchNorm2d(8), between
        self.second, self.last, self.head = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.between(self.norm(self.first(x)))
        return self.head(self.last(self.second(x)).relu().mean((2, 3)))


class PaddedShortcut(nn.Module):
    """The parameter-free shortcut of the CIFAR ResNets: new channels are padded with zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.inner, self.outer, self.head = (
            conv_norm(3, 8),
            conv_norm(8, 16),
            conv_norm(16, 16),
            nn.Linear(16, 5),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        shortcut = nn.functional.pad(x, (0, 0, 0, 0, 4, 4))
        return self.head((shortcut + self.outer(self.inner(x).relu())).relu().mean((2, 3)))


class Meeting(nn.Module):
    """Two widths of the same size that meet where no graph of gradients shows it."""

    def __init__(self, where: str) -> None:
        super().__init__()
        self.first, self.second, self.head, self.where = conv_norm(3, 16), conv_norm(16, 16), nn.Linear(16, 5), where

    def forward(self, x: Tensor) -> Tensor:
        one = self.first(x).relu()
        two = self.second(one).relu()
        if self.where == "recorded":
            self.seen = (one + two).detach()
        elif self.where == "detached":
            two = two * (one.detach() + two).sum((1, 2, 3), keepdim=True).sigmoid()
        elif self.training:
            two = two + one
        return self.head(two.mean((2, 3)))


class Shared(nn.Module):
    """The same weights twice: by one parameter in two layers, or by one layer under two names."""

    def __init__(self, layer: bool) -> None:
        super().__init__()
        self.stem, self.one, self.head = conv_norm(3, 12), nn.Conv2d(12, 12, 3, padding=1), nn.Linear(12, 5)
        self.two = self.one if layer else nn.Conv2d(12, 12, 3, padding=1)
        self.two.weight = self.one.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.two(self.one(self.stem(x).relu()).relu()).relu().mean((2, 3)))


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "residual": Residual,
    "inverted": Inverted,
    "dense": Dense,
    "grouped": Grouped,
    "flattened": Flattened,
}


def shuffle(x: Tensor) -> Tensor:
    return x.view(len(x), 2, 4, *x.shape[2:]).transpose(1, 2).reshape(x.shape)


REFUSED: dict[str, Callable[[], nn.Module]] = {
    "sigmoid": lambda: Middle(torch.sigmoid),
    "softplus": lambda: Middle(nn.functional.softplus),
    "softmax": lambda: Middle(lambda x: x.softmax(1)),
    "centred": lambda: Middle(lambda x: x - x.mean(1, keepdim=True)),
    "shuffle": lambda: Middle(shuffle),
    "padded": lambda: Middle(lambda x: nn.functional.pad(x, (1, 1, 1, 1), value=1.0)),
    "group norm": lambda: Middle(torch.relu, nn.GroupNorm(2, 8)),
    "plain norm": lambda: Middle(torch.relu, nn.BatchNorm2d(8, affine=False)),
}


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture
def example() -> Tensor:
    return torch.zeros(1, 3, 8, 8)


@pytest.fixture(params=NETWORKS)
def network(request: pytest.FixtureRequest) -> nn.Module:
    """Each small network in turn, with running statistics and norm parameters that are not trivial."""
    model = NETWORKS[request.param]()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.3)
    model.train()
    for _ in range(3):
        model(torch.randn(8, 3, 8, 8))
    return model.eval()


@pytest.fixture(params=REFUSED)
def refused(request: pytest.FixtureRequest) -> nn.Module:
    """Networks whose first convolution must not be pruned."""
    return REFUSED[request.param]()


@pytest.fixture
def residual() -> nn.Module:
    return Residual().eval()


@pytest.fixture
def padded_shortcut() -> nn.Module:
    return PaddedShortcut()


@pytest.fixture(params=["recorded", "detached", "training"])
def meeting(request: pytest.FixtureRequest) -> nn.Module:
    return Meeting(request.param)


@pytest.fixture
def tied_weights() -> nn.Module:
    return Shared(layer=False)


@pytest.fixture
def one_layer_two_names() -> nn.Module:
    return Shared(layer=True)
