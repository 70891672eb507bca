"""Groups of a network: found, proven in float64, and refused with a reason where removal would change something."""

import copy
import json
import time

import pytest
import torch
from torch import Tensor, nn

from atopipe.ato.discovery.capture import GraphError
from atopipe.ato.discovery.find import find_groups
from atopipe.ato.discovery.limits import LimitError, limits
from atopipe.ato.groups import Groups, GroupsError, NoGroupsError
from atopipe.ato.removal.shrink import shrink
from atopipe.ato.removal.slices import scale_groups
from atopipe.ato.search.masking import masked


def random_mask(sizes: list[int], generator: torch.Generator) -> Tensor:
    """Keeps the first group of each set and a random half of the others."""
    return torch.cat(
        [(torch.rand(n, generator=generator) > 0.5).index_fill(0, torch.tensor(0), True) for n in sizes]
    ).float()


def test_masked_zeroed_and_shrunk_networks_are_one_function(
    network: nn.Module, example: Tensor, generator: torch.Generator
) -> None:
    groups = find_groups(network, example, generator)
    network = network.double()
    images = torch.randn(4, 3, 8, 8, dtype=torch.float64)
    mask = random_mask(groups.sizes, generator)
    zeroed = copy.deepcopy(network)
    scale_groups(zeroed, groups, mask)
    small, _ = shrink(network, groups, mask)
    for training in (False, True):
        for model in (network, zeroed, small):
            model.train(training)
        with masked(network, groups, mask.double()):
            wanted = network(images)
        torch.testing.assert_close(zeroed(images), wanted, rtol=0, atol=1e-12)
        torch.testing.assert_close(small(images), wanted, rtol=0, atol=1e-12)
        assert (network(images) - wanted).abs().max() > 1e-3, "the mask must matter"
        assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in network.parameters())


def test_every_channel_but_the_logits_is_prunable_in_supported_networks(
    network: nn.Module, example: Tensor, generator: torch.Generator
) -> None:
    groups = find_groups(network, example, generator)
    assert [(u.name, u.reason) for u in groups.unprunable] == [("head", "it is the network's output")]


def test_the_residual_stream_is_one_set_with_all_its_layers(
    residual: nn.Module, example: Tensor, generator: torch.Generator
) -> None:
    stream = next(s for s in find_groups(residual, example, generator).sets if s.size == 16)
    holders = {m.module for m in stream.members if m.axis == "out"}
    readers = {m.module for m in stream.members if m.axis == "in"}
    assert holders == {"stem.0", "stem.1", "outer.0.0", "outer.0.1", "outer.1.0", "outer.1.1"}
    assert readers == {"inner.0.0", "inner.1.0", "head"}
    assert {m.module for m in stream.members if m.masked} == {"stem.1", "outer.0.1", "outer.1.1"}


def test_what_does_not_map_zero_to_zero_is_refused_with_a_reason(
    refused: nn.Module, example: Tensor, generator: torch.Generator
) -> None:
    groups = find_groups(refused, example, generator)
    assert [s.name for s in groups.sets] == ["second"]
    reason = {u.name: u.reason for u in groups.unprunable}["first"]
    assert any(words in reason for words in ("does not make them vanish", "does not run", "works across", "no scale"))


def test_a_padded_shortcut_keeps_its_stream_and_loses_inner_channels(
    padded_shortcut: nn.Module, example: Tensor, generator: torch.Generator
) -> None:
    groups = find_groups(padded_shortcut, example, generator)
    assert [s.name for s in groups.sets] == ["inner.0"]
    assert any("cannot be matched" in u.reason for u in groups.unprunable)


def test_widths_that_meet_out_of_sight_are_refused(
    meeting: nn.Module, example: Tensor, generator: torch.Generator
) -> None:
    with pytest.raises(NoGroupsError, match="does not run without some of them"):
        find_groups(meeting, example, generator)


def test_layers_that_share_a_parameter_stay_whole(
    tied_weights: nn.Module, example: Tensor, generator: torch.Generator
) -> None:
    with pytest.raises(NoGroupsError, match="'two' shares its parameters with another layer"):
        find_groups(tied_weights, example, generator)


def test_discovery_leaves_the_network_as_it_was(
    network: nn.Module, example: Tensor, generator: torch.Generator
) -> None:
    network.train()
    for parameter in network.parameters():
        parameter.requires_grad_(False)
    before = copy.deepcopy(network.state_dict())
    assert find_groups(network, example, generator).sets, "frozen parameters are prunable too"
    assert network.training
    assert not any(p.requires_grad for p in network.parameters())
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())
    assert not any(m._forward_hooks for m in network.modules())


def test_nothing_to_prune_is_an_error_not_a_silent_no_op(example: Tensor, generator: torch.Generator) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 5))
    with pytest.raises(
        NoGroupsError, match=r"Sequential has no channels that can be removed \(1: it is the network's output\)"
    ):
        find_groups(model, example, generator)


def test_an_untraceable_network_is_an_error(example: Tensor, generator: torch.Generator) -> None:
    class Counting(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise ValueError("needs two inputs")

    with pytest.raises(GraphError, match=r"Counting does not run on an image of shape .*needs two inputs"):
        find_groups(Counting(), example, generator)


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "densenet121"])
def test_torchvision_networks_prune_all_their_streams(name: str, generator: torch.Generator) -> None:
    torchvision = pytest.importorskip("torchvision")
    model = torchvision.models.get_model(name, weights=None, num_classes=10)
    groups = find_groups(model, torch.zeros(1, 3, 32, 32), generator)
    assert [u.reason for u in groups.unprunable] == ["it is the network's output"]
    assert len(groups.sets) == {"resnet18": 12, "mobilenet_v3_small": 27, "densenet121": 120}[name]
    assert groups.total == {"resnet18": 2880, "mobilenet_v3_small": 4872, "densenet121": 10240}[name]


def test_a_network_without_logits_is_refused(example: Tensor, generator: torch.Generator) -> None:
    class Twins(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x, x

    with pytest.raises(GraphError, match=r"Twins returns a tuple, but must return logits \[images, classes\]; wrap it"):
        find_groups(Twins(), example, generator)
    with pytest.raises(GraphError, match=r"Conv2d returns a tensor of shape \[1, 4, 6, 6\], but must return logits"):
        find_groups(nn.Conv2d(3, 4, 3), example, generator)


def work_for_ever() -> None:
    while True:
        pass


def test_work_stops_at_its_limits_of_time_and_memory() -> None:
    with limits(1, 4):
        time.sleep(1.5)  # waiting is no work
    with pytest.raises(LimitError, match="it takes more than 1 s of processor time"), limits(1, 4):
        work_for_ever()
    with pytest.raises(LimitError, match=r"it needs more than 0\.1 GiB"), limits(60, 0.1):
        [bytearray(2**20) + bytearray(time.sleep(0.002) or 0) for _ in range(1000)]


def test_discovery_draws_nothing_from_the_global_generator(
    network: nn.Module, example: Tensor, generator: torch.Generator
) -> None:
    before = torch.get_rng_state()
    find_groups(nn.Sequential(network, nn.Dropout(0.5)), example, generator)
    assert torch.equal(torch.get_rng_state(), before)


def test_groups_are_the_same_after_a_round_trip_through_a_file(
    network: nn.Module, example: Tensor, generator: torch.Generator
) -> None:
    groups = find_groups(network, example, generator)
    again = Groups.from_json(groups.to_json())
    assert again.to_json() == groups.to_json()
    assert (again.sizes, again.unprunable) == (groups.sizes, groups.unprunable)
    for ours, read in zip(groups.sets, again.sets, strict=True):
        assert (ours.name, ours.size, ours.channels_per_group) == (read.name, read.size, read.channels_per_group)
        for one, other in zip(ours.members, read.members, strict=True):
            assert (one.module, one.axis, one.masked) == (other.module, other.axis, other.masked)
            assert torch.equal(one.index, other.index)
            assert torch.equal(one.group, other.group)
            assert one.index.dtype == other.index.dtype
    mask = random_mask(groups.sizes, generator)
    assert shrink(network, again, mask)[1] == shrink(network, groups, mask)[1]


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"sets": [{"name": "a"}], "unprunable": []}', "[" * 100_000])
def test_what_is_no_file_of_groups_is_refused(text: str) -> None:
    with pytest.raises(GroupsError, match=r"^this is not a file of groups"):
        Groups.from_json(text)


def test_a_network_that_is_random_in_training_is_not_called_proven_there(
    example: Tensor, generator: torch.Generator
) -> None:
    """Dropout as a function draws for the channels that are left, so that outputs cannot be compared."""

    class Random(nn.Module):
        def __init__(self, rate: float) -> None:
            super().__init__()
            self.body, self.head, self.rate = nn.Conv2d(3, 64, 3), nn.Linear(64, 5), rate

        def forward(self, x: Tensor) -> Tensor:
            x = self.body(x).relu().mean((2, 3))
            return self.head(nn.functional.dropout(x, self.rate, self.training))

    assert not find_groups(Random(0.5), example, generator).proven_in_training
    assert find_groups(Random(0.0), example, generator).proven_in_training
    layered = nn.Sequential(nn.Conv2d(3, 12, 8), nn.Flatten(), nn.Dropout(0.5), nn.Linear(12, 5))
    assert find_groups(layered, example, generator).proven_in_training


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried")]
)
def test_memory_that_runs_out_is_no_property_of_the_network(
    residual: nn.Module, example: Tensor, generator: torch.Generator, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise error

    monkeypatch.setattr("atopipe.ato.discovery.invariance.cut_model", fails)
    with pytest.raises(type(error)):
        find_groups(residual, example, generator)


PLACES = (
    ("sets",),
    ("unprunable",),
    ("proven_in_training",),
    *(("sets", 0, name) for name in ("name", "size", "members")),
    *(("sets", 0, "members", 0, name) for name in ("module", "axis", "index", "group", "masked")),
    ("sets", 0, "members", 0, "index", 0),
    ("sets", 0, "members", 0, "group", 0),
    *(("unprunable", 0, name) for name in ("name", "size", "reason", "layers", "final")),
)
ODD = (None, True, -1, 10**30, 1.5, "x", "\ud800", [], {}, [None], [10**30], float("nan"))


@pytest.mark.parametrize("place", PLACES, ids=str)
def test_a_file_of_groups_with_anything_else_in_it_is_refused(
    place: tuple[str | int, ...], generator: torch.Generator
) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.Flatten(), nn.LazyLinear(5))
    model(torch.zeros(1, 3, 8, 8))
    groups = find_groups(model, torch.zeros(1, 3, 8, 8), generator)
    groups.require_fit(model)
    for value in ODD:
        plain = json.loads(groups.to_json())
        part = plain
        for key in place[:-1]:
            part = part[key]
        before, part[place[-1]] = part[place[-1]], value
        try:
            again = Groups.from_json(json.dumps(plain))
            again.require_fit(model)
        except GroupsError:
            continue
        # What passes is of the same type, and describes channels that are there.
        assert type(value) is type(before), (place, value)
