"""Every phase on a CUDA device that is not there: one device, no wait of the host, and how much is started.

The limits are what was counted, and some more: an operation takes the host 8 to 10 us, whatever its size.
"""

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import fake_cuda as fake
import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorDeviceMismatchError

from atopipe.ato.discovery.find import find_groups
from atopipe.ato.groups import Groups
from atopipe.ato.recipe import ProjectionSettings, Recipe, WeightSettings
from atopipe.ato.removal.decay import Removal
from atopipe.ato.removal.slices import GroupSlices
from atopipe.ato.search.budget import Budget
from atopipe.ato.search.controller_search import ControllerSearch
from atopipe.ato.search.cost import COSTS
from atopipe.ato.search.mask_search import SearchProblem
from atopipe.ato.search.masking import masked_at
from atopipe.ato.training.average import MovingAverage
from atopipe.ato.training.loop import accuracy
from atopipe.ato.training.optimizers import make_optimizer
from atopipe.ato.training.weights import mix, mixing
from atopipe.pipeline.data.augment import pad_crop_flip, resized_crop_flip, shift_rotate
from atopipe.pipeline.models.build import build_model

NETWORKS = ("resnet50", "resnet56", "mobilenet_v2")
SIDE, BATCH = 64, 8


@dataclass(frozen=True)
class Network:
    """A network, its groups, and its parts that are moved to the device by hand."""

    model: nn.Module
    groups: Groups
    budgets: tuple[Budget, ...]

    @property
    def layers(self) -> int:
        """Matrices: what cannot be done to all of them in one operation is done so many times."""
        return sum(parameter.dim() > 1 for parameter in self.model.parameters())


@pytest.fixture(scope="module", params=NETWORKS)
def network(request: pytest.FixtureRequest) -> Network:
    model = build_model(request.param, 10)
    example = torch.zeros(1, 3, SIDE, SIDE)
    groups = find_groups(model, example, torch.Generator().manual_seed(0))
    return Network(model, groups, (Budget.of_dense(COSTS["flops"](model, groups, example), 0.5),))


@pytest.fixture
def twins(network: Network) -> Iterator[Callable[[], nn.Module]]:
    """Copies of the network on the device, while nothing is computed."""
    copies = [copy.deepcopy(network.model) for _ in range(2)]
    with fake.active():
        yield lambda: fake.moved(copies.pop())


def images(count: int = BATCH) -> Tensor:
    return torch.empty(count, 3, SIDE, SIDE, device="cuda")


def removal_of(network: Network, twin: nn.Module) -> Removal:
    """As `Removal` makes it, which reads values once."""
    with torch.utils._python_dispatch._disable_current_modes():
        removal = Removal(network.model, network.groups, ProjectionSettings(half_space=0.0))
    there = {id(p): q for p, q in zip(network.model.parameters(), twin.parameters(), strict=True)}
    slices = tuple(
        replace(part, parameter=there[id(part.parameter)], lookup=fake.on_cuda(part.lookup))
        for part in removal.slices.slices
    )
    removal.slices = GroupSlices(slices, removal.slices.total, fake.on_cuda(removal.slices.lookup))
    removal.owners = fake.on_cuda(removal.owners)
    return removal


def search_of(network: Network, twin: nn.Module) -> ControllerSearch:
    with torch.utils._python_dispatch._disable_current_modes():
        problem = SearchProblem(network.model, network.groups, network.budgets, Recipe(), torch.Generator())
        search = ControllerSearch(problem)
    search.problem = replace(problem, model=twin)
    search.lookups = {name: fake.on_cuda(lookup) for name, lookup in search.lookups.items()}
    search.budgets = [budget.to(fake.CUDA) for budget in network.budgets]
    search.width_steps = fake.on_cuda(search.width_steps)
    search.controller = fake.moved(search.controller)  # type: ignore[assignment]
    return search


@torch.no_grad()
def test_a_decay_step_starts_two_operations_a_layer(network: Network, twins: Callable[[], nn.Module]) -> None:
    removal = removal_of(network, twins())
    removal.epsilon = None
    removed = torch.zeros(network.groups.total, dtype=torch.bool, device="cuda")
    done = fake.started(lambda: removal.step(removed, 0.1, 3))
    assert done.total <= 2 * network.layers + 30, done.counts
    assert done.waits == []


@torch.no_grad()
def test_a_step_with_half_spaces_stays_on_the_device(network: Network, twins: Callable[[], nn.Module]) -> None:
    removal = removal_of(network, twins())
    removed = torch.zeros(network.groups.total, dtype=torch.bool, device="cuda")

    def step() -> None:
        removal.remember()
        removal.step(removed, 0.1)

    assert fake.started(step).waits == []


def test_the_average_follows_in_two_operations(twins: Callable[[], nn.Module]) -> None:
    model, average = twins(), MovingAverage.__new__(MovingAverage)
    average.module, average.decay, average.steps = twins(), 0.9, 1
    done = fake.started(lambda: average.follow(model))
    assert done.counts == {"_foreach_lerp_": 1, "_foreach_copy_": 1}


@torch.no_grad()
def test_the_optimiser_is_fused(twins: Callable[[], nn.Module]) -> None:
    """AdamW: torch has no such kernel for SGD without a device."""
    model = twins()
    for parameter in model.parameters():
        parameter.grad = torch.empty_like(parameter)
    optimizer = make_optimizer(model, WeightSettings())
    optimizer.step()  # makes the moments
    done = fake.started(optimizer.step)
    assert done.total <= 8, done.counts
    assert done.waits == []


@torch.no_grad()
def test_a_forward_pass_masked_or_not_stays_on_the_device(network: Network, twins: Callable[[], nn.Module]) -> None:
    model = twins()
    search, mask = search_of(network, model), torch.empty(network.groups.total, device="cuda")
    for training in (True, False):
        model.train(training)
        plain = fake.started(lambda: model(images()))
        with masked_at(model, search.lookups, mask):
            masked = fake.started(lambda: model(images()))
        assert plain.waits == masked.waits == []
        assert masked.total - plain.total <= 2 * len(search.lookups)


@torch.no_grad()
def test_the_controllers_sample_and_penalty_stay_on_the_device(
    network: Network, twins: Callable[[], nn.Module]
) -> None:
    """From its scores to its loss: cuDNN's GRU before them and the backward pass cannot be run here."""
    search, scores = search_of(network, twins()), torch.empty(network.groups.total, device="cuda")
    done = fake.started(lambda: search._penalty(search._sample(scores), 0.5))
    assert done.waits == []
    assert done.total <= 3 * len(network.groups.sets) + 80, done.counts


@pytest.mark.parametrize("alpha", [0.0, 0.2])
def test_mixing_a_batch_does_not_wait(alpha: float) -> None:
    generator = torch.Generator().manual_seed(0)
    share, order = mixing(BATCH, alpha, generator)
    with fake.active():
        batch = images()
        assert fake.started(lambda: mix(batch, share, order.to(batch.device, non_blocking=True))).waits == []


def test_augmentations_give_images_on_their_device() -> None:
    changes: list[Callable[[Tensor, torch.Generator], Tensor]] = [
        lambda images, noise: pad_crop_flip(images, noise, padding=4),
        lambda images, noise: resized_crop_flip(images, noise, size=(32, 32)),
        lambda images, noise: shift_rotate(images, noise, shift=0.1, degrees=10),
    ]
    with fake.active():
        for change in changes:
            assert change(images().byte(), torch.Generator()).device.type == "cuda"


def test_validation_waits_once_after_its_last_batch(twins: Callable[[], nn.Module]) -> None:
    seen = []

    class Batches:
        def __len__(self) -> int:
            return 3

        def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
            for number in range(3):
                seen.append(number)
                yield images(), torch.empty(BATCH, dtype=torch.int64, device="cuda")

    with pytest.raises(DataDependentOutputException):
        accuracy(twins(), Batches())
    assert seen == [0, 1, 2]


def test_what_these_tests_look_for_is_found() -> None:
    """Mixed devices, waits, and blocking copies."""
    order = torch.arange(3)
    with fake.active():
        there = torch.ones(3, device="cuda")
        with pytest.raises(FakeTensorDeviceMismatchError):
            there * torch.ones(3)
        with pytest.raises(DataDependentOutputException):
            float(there.sum())
        assert fake.started(lambda: order.to("cuda")).waits == ["_to_copy"]
        assert fake.started(lambda: there[order]).waits == ["index"]
