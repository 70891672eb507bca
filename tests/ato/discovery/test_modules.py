"""Networks whose whole graph cannot be followed: their modules are read one by one; and what only training shows."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn

from atopipe.ato.discovery.capture import GraphError
from atopipe.ato.discovery.find import find_groups
from atopipe.ato.groups import Groups, NoGroupsError
from atopipe.ato.removal.shrink import shrink
from atopipe.ato.search.cost import flops


def conv(inputs: int, outputs: int, size: int = 3) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, size, padding=size // 2), nn.BatchNorm2d(outputs), nn.ReLU())


class Shuffled(nn.Module):
    """Half of the channels passes by, and both halves are shuffled, as in ShuffleNet V2."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(conv(channels // 2, 12, 1), conv(12, channels // 2))

    def forward(self, x: Tensor) -> Tensor:
        left, right = x.chunk(2, 1)
        x = torch.cat([left, self.branch(right)], 1)
        return x.view(len(x), 2, x.shape[1] // 2, *x.shape[2:]).transpose(1, 2).reshape(x.shape)


class Rolled(nn.Module):
    """Channels last, a rolled and merged image, LayerNorm and an MLP on the stream, as in Swin."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm, self.merge = nn.LayerNorm(channels), nn.Linear(4 * channels, channels, bias=False)
        self.mlp = nn.Sequential(nn.Linear(channels, 24), nn.GELU(), nn.Dropout(0.5), nn.Linear(24, channels))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.roll(x.permute(0, 2, 3, 1), (1, 1), (1, 2))
        corners = [x[:, i::2, j::2] for i in (0, 1) for j in (0, 1)]
        x = self.merge(torch.cat(corners, -1))
        return (x + self.mlp(self.norm(x))).permute(0, 3, 1, 2)


class Around(nn.Module):
    """A stem, some blocks, a head."""

    def __init__(self, *blocks: nn.Module) -> None:
        super().__init__()
        self.stem, self.blocks, self.head = conv(3, 16), nn.Sequential(*blocks), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


class Noisy(nn.Module):
    """Dropout that no module shows."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.dropout(x, 0.5, self.training)


class Mixing(nn.Module):
    """Mixes channels while it trains, and does nothing afterwards."""

    def forward(self, x: Tensor) -> Tensor:
        return x + x.mean(1, keepdim=True) if self.training else x


def found(model: nn.Module, generator: torch.Generator) -> Groups:
    return find_groups(model, torch.zeros(1, 3, 8, 8), generator)


@pytest.mark.parametrize(
    ("block", "widths"),
    [
        (Shuffled, {"blocks.0.branch.0.0": 12, "blocks.1.branch.0.0": 12}),
        (Rolled, {"blocks.0.mlp.0": 24, "blocks.1.mlp.0": 24}),
    ],
)
def test_what_begins_and_ends_within_a_module_is_found_there(
    block: Callable[[int], nn.Module], widths: dict[str, int], generator: torch.Generator
) -> None:
    model = Around(block(16), block(16))
    groups = found(model, generator)
    assert {s.name: s.size for s in groups.sets} == widths
    told = {layer for width in groups.unprunable for layer in width.layers} | {n for s in groups.sets for n in s.layers}
    assert {n for n, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)} <= told, "nothing in silence"
    assert all(width.reason for width in groups.unprunable)


@pytest.mark.parametrize("block", [Shuffled, Rolled])
def test_shrinking_within_modules_changes_nothing(
    block: Callable[[int], nn.Module], generator: torch.Generator
) -> None:
    model = Around(block(16), block(16)).double().eval()
    groups = found(model, generator)
    mask = torch.tensor([float(i % 2) for i in range(groups.total)])
    with torch.no_grad():
        for group_set, part in zip(groups.sets, groups.split(mask), strict=True):
            for member in group_set.members:
                if member.axis == "out":
                    for tensor in model.get_submodule(member.module).parameters(recurse=False):
                        tensor[member.index[part[member.group] < 0.5]] = 0
        small, _ = shrink(model, groups, mask)
        images = torch.randn(2, 3, 8, 8, dtype=torch.float64)
        torch.testing.assert_close(small(images), model(images), rtol=0, atol=1e-12)


def test_channels_combined_with_the_image_stay_whole(generator: torch.Generator) -> None:
    class Residue(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.outer, self.head = conv(3, 8), nn.Conv2d(8, 3, 1), nn.Linear(3, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.head((x + self.outer(self.inner(x))).mean((2, 3)))

    groups = found(Residue(), generator)
    assert [s.name for s in groups.sets] == ["inner.0"]
    assert {u.name: u.reason for u in groups.unprunable}["outer"] == "they are combined with the input of the network"


def test_dropout_out_of_sight_is_no_reason_to_refuse(generator: torch.Generator) -> None:
    groups = found(Around(conv(16, 12), Noisy(), conv(12, 16)), generator)
    assert sorted(groups.sizes) == [12, 16, 16]


def test_what_goes_wrong_in_training_only_is_refused(generator: torch.Generator) -> None:
    groups = found(Around(conv(16, 12), Mixing(), conv(12, 16)), generator)
    assert "blocks.0.0" not in {s.name for s in groups.sets}
    assert "does not make them vanish" in {u.name: u.reason for u in groups.unprunable}["blocks.0.0"]
    assert len(groups.sets) == 2


def test_a_network_that_looks_at_values_is_read_with_values(generator: torch.Generator) -> None:
    class Deciding(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = Around()

        def forward(self, x: Tensor) -> Tensor:
            return self.body(x) if x.abs().max() < 1e9 else self.body(x / 2)

    assert [s.size for s in found(Deciding(), generator).sets] == [16]


def test_widths_that_share_a_norm_have_a_reason_each(generator: torch.Generator) -> None:
    class Joined(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Conv2d(3, 8, 3), nn.Conv2d(3, 8, 3)
            self.norm, self.last, self.head = nn.BatchNorm2d(16, affine=False), nn.Conv2d(16, 6, 1), nn.Linear(6, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.last(self.norm(torch.cat([self.one(x), self.two(x)], 1))).mean((2, 3)))

    reasons = {u.name: u.reason for u in found(Joined(), generator).unprunable}
    assert reasons.keys() == {"one", "two", "head"}
    assert reasons["one"] == reasons["two"] == "BatchNorm2d 'norm' has no scale and shift that could be set to zero"


def test_a_module_that_is_never_run_is_named(generator: torch.Generator) -> None:
    model = Around(conv(16, 16))
    model.spare = nn.Linear(7, 7)
    reasons = {u.name: u.reason for u in found(model, generator).unprunable}
    assert reasons["spare"] == "it is not called as a layer"


def test_the_projections_of_attention_are_counted(generator: torch.Generator) -> None:
    class Attending(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patches, self.head = nn.Conv2d(3, 16, 2, 2), nn.Linear(16, 5)
            self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
            self.mlp = nn.Sequential(nn.Linear(16, 24), nn.GELU(), nn.Linear(24, 16))

        def forward(self, x: Tensor) -> Tensor:
            x = self.patches(x).flatten(2).transpose(1, 2)
            x = x + self.attention(x, x, x, need_weights=False)[0]
            return self.head((x + self.mlp(x)).mean(1))

    model, example = Attending(), torch.zeros(1, 3, 8, 8)
    groups = found(model, generator)
    assert [s.name for s in groups.sets] == ["mlp.0"]
    tokens = 16
    by_hand = tokens * (12 * 16 + 4 * 16 * 16 + 2 * 16 * 24) + 16 * 5
    assert flops(model, groups, example).dense == 2 * by_hand


def test_nothing_left_is_an_error_with_the_reasons(generator: torch.Generator) -> None:
    with pytest.raises(NoGroupsError, match="has no channels that can be removed"):
        found(nn.Sequential(nn.Conv2d(3, 5, 8), nn.Flatten()), generator)


class Several(nn.Conv2d):
    """A layer that returns its output among other things."""

    def forward(self, x: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return super().forward(x), None


Container, Parts = Callable[[Tensor, Tensor], Any], Callable[[Any], tuple[Tensor, Tensor]]


class Pair(nn.Module):
    """Two streams, as in octave convolutions: modules take and return containers of tensors."""

    def __init__(
        self, container: Callable[[Tensor, Tensor], Any], parts: Callable[[Any], tuple[Tensor, Tensor]]
    ) -> None:
        super().__init__()
        self.container, self.parts = container, parts
        self.high, self.low = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.down, self.up = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)

    def forward(self, both: Any) -> Any:
        high, low = self.parts(both)
        up = nn.functional.interpolate(self.up(low), scale_factor=2)
        down = self.down(nn.functional.avg_pool2d(high, 2))
        return self.container((self.high(high) + up).relu(), (self.low(low) + down).relu())


class Octave(nn.Module):
    def __init__(
        self, container: Callable[[Tensor, Tensor], Any], parts: Callable[[Any], tuple[Tensor, Tensor]]
    ) -> None:
        super().__init__()
        self.container, self.parts = container, parts
        self.stem, self.first, self.second = nn.Conv2d(3, 8, 1), Pair(container, parts), Pair(container, parts)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        high, low = self.parts(self.second(self.first(self.container(x, nn.functional.avg_pool2d(x, 2)))))
        return self.head(torch.cat([high.mean((2, 3)), low.mean((2, 3))], 1))


@dataclass
class Both:
    high: Tensor
    low: Tensor


@pytest.mark.parametrize(
    ("container", "parts"),
    [
        (lambda *both: both, tuple),
        (lambda *both: list(both), tuple),
        (lambda high, low: {"high": high, "low": low}, lambda both: tuple(both.values())),
        (Both, lambda both: (both.high, both.low)),
    ],
    ids=["tuple", "list", "dict", "dataclass"],
)
def test_modules_may_take_and_return_containers_of_tensors(
    container: Container,
    parts: Parts,
    generator: torch.Generator,
) -> None:
    model = Octave(container, parts)
    groups = found(model, generator)
    assert len(groups.sets) >= 3
    assert flops(model, groups, torch.zeros(1, 3, 16, 16)).dense > 0


def test_the_width_of_a_layer_that_returns_more_than_a_tensor_is_kept(generator: torch.Generator) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.head = Several(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Linear(8, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.second(self.first(x)[0].relu()).relu().mean((2, 3)))

    model = Net()
    groups = found(model, generator)
    assert [s.name for s in groups.sets] == ["second"]
    assert {u.name: u.reason for u in groups.unprunable}["first"] == "'first' returns more than a tensor"
    assert flops(model, groups, torch.zeros(1, 3, 16, 16)).dense > 0


def test_a_search_without_time_left_names_it_and_ends(generator: torch.Generator) -> None:
    told: list[int] = []
    with pytest.raises(NoGroupsError, match=r"the search for widths takes more than 0 s of processor time"):
        find_groups(
            Around(conv(16, 16)),
            torch.zeros(1, 3, 16, 16),
            generator,
            seconds=0.0,
            on_progress=lambda widths, seconds: told.append(widths),
        )
    assert told == [0] * len(told) != []


@pytest.mark.parametrize("seed", range(3))
def test_rounding_that_a_norm_of_two_values_enlarges_is_no_defect(seed: int) -> None:
    """resnet18 at 16 pixels: its last layers see one position, and so two values per channel in training."""
    generator = torch.Generator().manual_seed(seed)
    groups = find_groups(torchvision.models.resnet18(), torch.zeros(1, 3, 16, 16), generator)
    assert [(width.name, width.reason) for width in groups.unprunable] == [("fc", "it is the network's output")]


class Failing(nn.Module):
    """Fails with an error."""

    def __init__(self, error: Callable[[], BaseException]) -> None:
        super().__init__()
        self.error, self.layer = error, nn.Conv2d(3, 8, 3)

    def forward(self, x: Tensor) -> Tensor:
        raise self.error()


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (
            lambda: TypeError("forward() missing 1 required positional argument: 'y'"),
            "let its forward() take the images",
        ),
        (
            lambda: RuntimeError("Input type (c10::Half) and bias type (float) should be the same"),
            "let it compute in the",
        ),
        (
            lambda: RuntimeError("expected scalar type Half but found Float"),
            "let it compute in the number format of its",
        ),
        (lambda: AssertionError(), "repair its forward(), or choose another --input-size"),
        (lambda: ValueError("Input height must be 224"), "choose another --input-size or another model"),
    ],
    ids=["arguments", "bias", "scalar", "assertion", "size"],
)
def test_the_remedy_fits_what_the_code_raised(
    error: Callable[[], BaseException], words: str, generator: torch.Generator
) -> None:
    with pytest.raises(GraphError) as caught:
        found(Failing(error), generator)
    assert words in str(caught.value)
    assert str(caught.value).startswith("Failing does not run on an image of shape [3, 8, 8] (")
