"""A run that is taken up again from a snapshot ends in the very same bytes, wherever it was interrupted."""

import copy
import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

from atopipe.ato.discovery.find import find_groups
from atopipe.ato.execution import Execution
from atopipe.ato.groups import Groups
from atopipe.ato.recipe import ControllerSettings, PhaseSettings, ProjectionSettings, Recipe, WeightSettings
from atopipe.ato.search.budget import Budget
from atopipe.ato.search.cost import Cost, flops
from atopipe.ato.snapshot import Snapshot
from atopipe.ato.training.dense import train_dense
from atopipe.ato.training.loop import EpochRecord
from atopipe.ato.training.trainer import train

PHASES = PhaseSettings(search=0.25, decay=0.075)
RECIPE = Recipe(phases=PHASES, epochs=4, batch_size=8, align=2, controller=ControllerSettings(learning_rate=1e-2))
PER_EPOCH = 5  # 20 steps: dense to 2, search to 7, decay to 9


class Shuffled:
    """Random images in a different order in every epoch."""

    def __init__(self) -> None:
        self.generator = torch.Generator().manual_seed(3)
        self.images = torch.randn(8 * PER_EPOCH, 3, 8, 8, generator=torch.Generator().manual_seed(1))

    def __len__(self) -> int:
        return PER_EPOCH

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return self.resume(self.order(), 0)

    def order(self) -> Tensor:
        return self.generator.get_state()

    def resume(self, order: Tensor, done: int) -> Iterator[tuple[Tensor, Tensor]]:
        self.generator.set_state(order)
        batches = torch.randperm(len(self.images), generator=self.generator).split(8)
        return itertools.islice(((self.images[batch], batch % 5) for batch in batches), done, None)


class Stopped(Exception):
    """The process is gone."""


class Memory:
    """Begins with one snapshot; keeps another after so many steps, and stops there."""

    def __init__(self, start: Snapshot | None = None, stop_after: int | None = None) -> None:
        self.start, self.stop_after, self.steps = start, stop_after, 0
        self.kept: Snapshot | None = None

    def latest(self) -> Snapshot | None:
        return self.start

    def after_step(self, phase: str, take: Callable[[], Snapshot]) -> None:
        self.steps += 1
        if self.steps == self.stop_after:
            now = take()
            self.kept = Snapshot(
                {key: tensor.clone() for key, tensor in now.tensors.items()}, copy.deepcopy(now.values)
            )
            raise Stopped


def dropping(network: nn.Module) -> nn.Module:
    """The network behind some dropout, which draws from torch's global generator."""
    return nn.Sequential(nn.Dropout(0.2), copy.deepcopy(network))


@functools.cache
def prunable(network: type[nn.Module]) -> tuple[Groups, Cost]:
    model, example = dropping(network()), torch.zeros(1, 3, 8, 8)
    groups = find_groups(model, example, torch.Generator().manual_seed(0))
    return groups, flops(model, groups, example)


def pruned(network: nn.Module, recipe: Recipe, memory: Memory) -> tuple[nn.Module, tuple[EpochRecord, ...]]:
    groups, cost = prunable(type(network))
    torch.manual_seed(0)
    trained = train(
        dropping(network),
        groups,
        [Budget.of_dense(cost, 0.5)],
        train_batches=Shuffled(),
        val_batches=Shuffled(),
        recipe=recipe,
        generator=torch.Generator().manual_seed(0),
        report=lambda _: None,
        execution=Execution(memory_format=torch.channels_last),
        checkpointer=memory,
    )
    return trained.model, trained.history


def dense(network: nn.Module, recipe: Recipe, memory: Memory) -> tuple[nn.Module, tuple[EpochRecord, ...]]:
    torch.manual_seed(0)
    return train_dense(
        dropping(network),
        train_batches=Shuffled(),
        val_batches=Shuffled(),
        recipe=recipe,
        generator=torch.Generator().manual_seed(0),
        report=lambda _: None,
        checkpointer=memory,
    )


def interrupted(run: Callable[[Memory], object], stop_after: int, start: Snapshot | None = None) -> Snapshot:
    memory = Memory(start, stop_after)
    with pytest.raises(Stopped):
        run(memory)
    assert memory.kept is not None
    return memory.kept


def untimed(history: tuple[EpochRecord, ...]) -> list[EpochRecord]:
    return [dataclasses.replace(record, seconds=0.0) for record in history]


@pytest.mark.parametrize("stop_after", [1, 4, 5, 7, 8, 9, 12, 20])
@pytest.mark.parametrize(
    "recipe",
    [
        RECIPE,
        dataclasses.replace(
            RECIPE,
            weights=WeightSettings("sgd", learning_rate=0.05, mixup=0.3, ema=0.9),
            projection=ProjectionSettings(1.0, 10.0),
            live_shrink=False,
        ),
        dataclasses.replace(RECIPE, weights=WeightSettings(ema=0.9, clip_norm=1.0)),
    ],
    ids=["default", "authors' projection, no live shrink", "average"],
)
def test_a_run_taken_up_again_ends_in_the_same_bytes(residual: nn.Module, recipe: Recipe, stop_after: int) -> None:
    wanted, history = pruned(residual, recipe, Memory())
    snapshot = interrupted(lambda memory: pruned(residual, recipe, memory), stop_after)
    torch.randn(7)  # whatever else the process did
    model, resumed = pruned(residual, recipe, Memory(snapshot))
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in wanted.state_dict().items())
    assert untimed(resumed) == untimed(history)


def test_a_run_may_be_interrupted_again_and_again(residual: nn.Module) -> None:
    wanted, history = pruned(residual, RECIPE, Memory())
    snapshot: Snapshot | None = None
    for _ in range(6):
        snapshot = interrupted(lambda memory: pruned(residual, RECIPE, memory), 3, snapshot)
    model, resumed = pruned(residual, RECIPE, Memory(snapshot))
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in wanted.state_dict().items())
    assert untimed(resumed) == untimed(history)


def test_a_dense_run_is_taken_up_again_as_well(residual: nn.Module) -> None:
    wanted, history = dense(residual, RECIPE, Memory())
    snapshot = interrupted(lambda memory: dense(residual, RECIPE, memory), 8)
    model, resumed = dense(residual, RECIPE, Memory(snapshot))
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in wanted.state_dict().items())
    assert untimed(resumed) == untimed(history)
