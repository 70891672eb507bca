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
    """Concatenations with a norm after them, as in DenseNet."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 12, 3, padding=1)
        self.norm, self.third, self.head = nn.BatchNorm2d(20), nn.Conv2d(20, 8, 1), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        x = self.norm(torch.cat([x, self.second(x.relu())], 1)).relu()
        return self.head(self.third(x).relu().mean((2, 3)))


class Grouped(nn.Module):
    """Grouped convolutions with 4 and 2 blocks, and transposed ones: plain, grouped and depthwise."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.four, self.two = conv_norm(3, 16), conv_norm(16, 16, groups=4), conv_norm(16, 24, groups=2)
        self.up, self.blocks = nn.ConvTranspose2d(24, 10, 2, stride=2), nn.ConvTranspose2d(10, 12, 2, groups=2)
        self.depthwise, self.head = nn.ConvTranspose2d(12, 12, 2, groups=12), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.two(self.four(self.stem(x).relu()).relu()).relu()
        return self.head(self.depthwise(self.blocks(self.up(x).relu()).relu()).relu().mean((2, 3)))


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


class Wired(nn.Module):
    """One layer called twice, a block under two names, cat[x, x], a gate of chunks, three branches, a shared slope."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.twice, self.doubled = conv_norm(3, 8), nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(16, 8, 1)
        block = conv_norm(8, 8)
        self.blocks = nn.ModuleList([block, block])
        self.gate, self.slope, self.plain = nn.Conv2d(8, 16, 1), nn.PReLU(), nn.InstanceNorm2d(8)
        self.wide, self.narrow, self.direct = conv_norm(8, 8), nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.twice(self.twice(self.stem(x).relu()).relu()).relu()
        x = self.doubled(torch.cat([x, x], 1))
        for block in self.blocks:
            x = self.slope(block(x))
        left, right = self.gate(self.plain(x)).chunk(2, 1)
        x = left * right.sigmoid()
        x = (self.wide(x) + self.narrow(x) + self.direct(x)).relu()
        return self.head(nn.functional.pad(nn.functional.max_pool2d(x, 2), (1, 1, 1, 1)).mean((2, 3)))


class Rearranged(nn.Module):
    """Channels last, shuffled in blocks, rolled windows, branches stacked and weighted against each other."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.mix, self.heads = nn.Conv2d(3, 16, 3, padding=1), nn.Linear(16, 12), nn.Linear(12, 12)
        self.one, self.two = nn.Linear(12, 8), nn.Linear(12, 8)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        x = x.unflatten(1, (4, x.shape[1] // 4)).transpose(1, 2).flatten(1, 2)
        x = self.mix(x.permute(0, 2, 3, 1)).relu().roll((1, 1), (1, 2))
        x = self.heads(x.view(len(x), 4, 2, 4, 2, -1).transpose(2, 3).flatten(1, 4)).relu().mean(1)
        stacked = torch.stack([self.one(x), self.two(x)], 1)
        x = stacked.sum(1) + (stacked * stacked.softmax(1)).sum(1)
        return self.head(nn.functional.normalize(x))


class Attention(nn.Module):
    """A transformer block: class token, positions, attention, an MLP: only its hidden units may go."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.token = nn.Conv2d(3, 16, 4, 4), nn.Parameter(torch.randn(1, 1, 16))
        self.positions, self.norm, self.qkv = nn.Parameter(torch.randn(1, 5, 16)), nn.LayerNorm(16), nn.Linear(16, 48)
        self.project, self.up, self.down = nn.Linear(16, 16), nn.Linear(16, 24), nn.Linear(24, 16)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.positions
        q, k, v = self.qkv(self.norm(x)).reshape(len(x), -1, 3, 4, 4).permute(2, 0, 3, 1, 4)
        x = x + self.project(nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return self.head((x + self.down(nn.functional.gelu(self.up(self.norm(x))))).mean(1))


class OneLayerTwoNames(nn.Module):
    """The same layer under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.one, self.head = conv_norm(3, 12), nn.Conv2d(12, 12, 3, padding=1), nn.Linear(12, 5)
        self.two = self.one

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.two(self.one(self.stem(x).relu()).relu()).relu().mean((2, 3)))


class Tied(nn.Module):
    """Two layers with one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.one, self.two = conv_norm(3, 8), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)
        self.free, self.head = nn.Linear(8, 6), nn.Linear(6, 5)
        self.two.weight = self.one.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.free(self.two(self.one(self.stem(x).relu()).relu()).mean((2, 3))))


class OffThePath(nn.Module):
    """Two widths meet in `meeting`, whose outcome does not reach the logits differentiably, or only in training."""

    def __init__(self, meeting: Callable[[nn.Module, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.one, self.two, self.meeting = conv_norm(3, 8), conv_norm(8, 8), meeting
        self.free, self.head = conv_norm(8, 12), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        one = self.one(x).relu()
        two = self.two(one).relu()
        return self.head(self.free(self.meeting(self, one, two)).mean((2, 3)))


def record(module: nn.Module, one: Tensor, two: Tensor) -> Tensor:
    module.seen = (one + two).detach()  # type: ignore[assignment]
    return two


def detach(module: nn.Module, one: Tensor, two: Tensor) -> Tensor:
    return two * (one.detach() + two).sum((1, 2, 3), keepdim=True).sigmoid()


def train_only(module: nn.Module, one: Tensor, two: Tensor) -> Tensor:
    return two + one if module.training else two


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


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "residual": Residual,
    "inverted": Inverted,
    "dense": Dense,
    "grouped": Grouped,
    "flattened": Flattened,
    "wired": Wired,
    "rearranged": Rearranged,
}


class Scaled(nn.Module):
    """A free parameter acts on channels, by `action`."""

    def __init__(self, action: Callable[[Tensor, Tensor], Tensor], *shape: int) -> None:
        super().__init__()
        self.free, self.action = nn.Parameter(torch.randn(shape)), action

    def forward(self, x: Tensor) -> Tensor:
        return self.action(x, self.free)


class Recurrent(nn.Module):
    """Reads every pixel in turn."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.GRU(8, 8, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x.flatten(2).transpose(1, 2))[0].transpose(1, 2).unflatten(2, x.shape[2:])


def shift_halves(x: Tensor) -> Tensor:
    return torch.cat([x[:, :4], x[:, 4:].roll(1, 2)], 1)


MIXES, VANISH, FIXED, RUN = "works across these channels", "does not make them vanish", "of fixed size", "does not run"
REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "sigmoid": (lambda: Middle(torch.sigmoid), VANISH),
    "softplus": (lambda: Middle(nn.functional.softplus), VANISH),
    "plus one": (lambda: Middle(lambda x: x + 1), VANISH),
    "exp": (lambda: Middle(torch.exp), VANISH),
    "softmax": (lambda: Middle(lambda x: x.softmax(1)), rf"{MIXES} \(_softmax\)"),
    "cumulated": (lambda: Middle(lambda x: x.cumsum(1)), rf"Middle {MIXES} \(cumsum\)"),
    "softmax over positions": (lambda: Middle(lambda x: x.flatten(2).softmax(2).view(x.shape)), VANISH),
    "centred": (lambda: Middle(lambda x: x - x.mean(1, keepdim=True)), rf"{MIXES} \(mean\)"),
    "padded": (lambda: Middle(lambda x: nn.functional.pad(x, (1, 1, 1, 1), value=1.0)), VANISH),
    "shuffle": (lambda: Middle(lambda x: x[:, torch.tensor([1, 0, 3, 2, 5, 4, 7, 6])]), RUN),
    "literal slice": (lambda: Middle(shift_halves), f"removing some of them changes the output by|{RUN}"),
    "literal split": (lambda: Middle(lambda x: torch.cat(x.split([3, 5], 1)[::-1], 1)), RUN),
    "literal view": (lambda: Middle(lambda x: x.view(-1, 2, 4, 64).transpose(1, 2).reshape(-1, 8, 8, 8)), RUN),
    "pixel shuffle": (lambda: Middle(nn.Sequential(nn.PixelShuffle(2), nn.PixelUnshuffle(2))), MIXES),
    "group norm": (lambda: Middle(torch.relu, nn.GroupNorm(2, 8)), rf"GroupNorm 'norm' {MIXES}"),
    "response norm": (
        lambda: Middle(nn.LocalResponseNorm(3)),
        f"LocalResponseNorm 'between' {MIXES}|cannot be matched",
    ),
    "plain norm": (
        lambda: Middle(torch.relu, nn.BatchNorm2d(8, affine=False)),
        "'norm' cannot be cut: it has no scale",
    ),
    "weight norm": (
        lambda: Middle(nn.utils.parametrizations.weight_norm(nn.Conv2d(8, 8, 1))),
        "'between' cannot be cut: its weights are computed from other parameters",
    ),
    "functional": (
        lambda: Middle(Scaled(nn.functional.conv2d, 8, 8, 1, 1)),
        rf"Scaled 'between' {MIXES} \(convolution\)",
    ),
    "free scale": (lambda: Middle(Scaled(torch.mul, 8, 1, 1)), rf"Scaled 'between' combines .* {FIXED} \(mul\)"),
    "free shift": (lambda: Middle(Scaled(torch.add, 8, 1, 1)), rf"Scaled 'between' combines .* {FIXED} \(add\)"),
    "recurrent": (lambda: Middle(Recurrent()), rf"GRU 'between.inner' {MIXES}"),
}


@pytest.fixture(autouse=True)
def _two_threads() -> None:
    torch.set_num_threads(2)
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
def refused(request: pytest.FixtureRequest) -> tuple[nn.Module, str]:
    """Networks whose first convolution must not be pruned, and words of the reason."""
    build, words = REFUSED[request.param]
    return build(), words


@pytest.fixture
def attention() -> nn.Module:
    return Attention()


@pytest.fixture
def one_layer_two_names() -> nn.Module:
    return OneLayerTwoNames()


@pytest.fixture
def tied() -> nn.Module:
    return Tied()


@pytest.fixture(params=[record, detach, train_only])
def off_the_path(request: pytest.FixtureRequest) -> nn.Module:
    return OffThePath(request.param)


@pytest.fixture
def residual() -> nn.Module:
    return Residual().eval()


@pytest.fixture
def padded_shortcut() -> nn.Module:
    return PaddedShortcut()
