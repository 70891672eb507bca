"""One search for several budgets: its end is where each run begins, and sharing it changes no result."""

import copy
import dataclasses
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from atopipe.ato.discovery.find import find_groups
from atopipe.ato.groups import Groups
from atopipe.ato.recipe import ControllerSettings, PhaseSettings, Recipe
from atopipe.ato.schedule import annealed_ratio
from atopipe.ato.search.budget import Budget
from atopipe.ato.search.cost import Cost, flops
from atopipe.ato.search.selection import choose_mask
from atopipe.ato.snapshot import Snapshot
from atopipe.ato.training.loop import NullCheckpointer
from atopipe.ato.training.shared_search import SharedSearch, passed_at, search_for_all
from atopipe.ato.training.trainer import Trained, train

RECIPE = Recipe(
    phases=PhaseSettings(search=0.3, decay=0.1), epochs=4, align=2, controller=ControllerSettings(learning_rate=1e-2)
)
TIGHT, WIDE = 0.3, 0.7


@dataclass
class Blobs:
    """Images whose class is the place of a bright spot, the same in every epoch."""

    count: int
    seed: int = 5

    def __len__(self) -> int:
        return self.count

    def order(self) -> Tensor:
        return torch.tensor([self.seed])

    def resume(self, order: Tensor, done: int) -> Iterator[tuple[Tensor, Tensor]]:
        return itertools.islice(iter(self), done, None)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        generator = torch.Generator().manual_seed(self.seed)
        for _ in range(self.count):
            labels = torch.randint(5, (16,), generator=generator)
            images = 0.3 * torch.randn(16, 3, 8, 8, generator=generator)
            images[torch.arange(16), labels % 3, labels, labels] += 3.0
            yield images, labels


class Kept(NullCheckpointer):
    """Keeps every snapshot, and begins with `start`; after step `last` the run is killed."""

    def __init__(self, start: Snapshot | None = None, last: int | None = None) -> None:
        self.start, self.last, self.taken = start, last, list[Snapshot]()

    def latest(self) -> Snapshot | None:  # type: ignore[override]
        return self.start

    def after_step(self, phase: str, take: Callable[[], Snapshot]) -> None:
        self.taken.append(copy.deepcopy(take()))
        if len(self.taken) == self.last:
            raise KeyboardInterrupt


@pytest.fixture
def problem(residual: nn.Module, example: Tensor) -> tuple[nn.Module, Groups, Cost]:
    groups = find_groups(residual, example, torch.Generator().manual_seed(0))
    return residual, groups, flops(residual, groups, example)


def training(problem: tuple[nn.Module, Groups, Cost], target: float, recipe: Recipe = RECIPE) -> Callable[..., Trained]:
    model, groups, cost = problem
    batches: dict[str, Any] = {"train_batches": Blobs(20), "val_batches": Blobs(2, seed=6)}
    generator, budget = torch.Generator().manual_seed(0), [Budget.of_dense(cost, target)]
    how = {"recipe": recipe, "generator": generator, "report": lambda happened: None, **batches}
    return partial(train, copy.deepcopy(model), groups, budget, **how)


def mask_for(found: SharedSearch, problem: tuple[nn.Module, Groups, Cost], target: float) -> Tensor:
    _, groups, cost = problem
    own, far = [Budget.of_dense(cost, target)], [Budget.of_dense(cost, TIGHT)]
    return choose_mask(found.scores_at(passed_at(own, far, RECIPE)), groups, own, RECIPE.align)


def same(first: nn.Module, second: nn.Module) -> bool:
    pairs = zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    return all(torch.equal(one, other) for one, other in pairs)


def test_the_run_that_the_search_goes_on_to_ends_as_if_nothing_were_shared(
    problem: tuple[nn.Module, Groups, Cost],
) -> None:
    alone = training(problem, TIGHT)()
    found = search_for_all(training(problem, TIGHT), NullCheckpointer(), RECIPE)
    branched = training(problem, TIGHT)(checkpointer=Kept(found.branch(mask_for(found, problem, TIGHT))))
    assert torch.equal(branched.mask, alone.mask)
    assert same(branched.model, alone.model)
    assert [r.val_accuracy for r in branched.history] == [r.val_accuracy for r in alone.history]


def test_a_wider_run_holds_its_own_budget_and_keeps_what_it_had_when_that_was_passed(
    problem: tuple[nn.Module, Groups, Cost],
) -> None:
    _, groups, cost = problem
    found = SharedSearch.of(search_for_all(training(problem, TIGHT), NullCheckpointer(), RECIPE).as_snapshot())
    mask = mask_for(found, problem, WIDE)
    wide = training(problem, WIDE)(checkpointer=Kept(found.branch(mask)))
    assert torch.equal(wide.mask, mask)
    kept = float(cost(groups.widths(wide.mask).double())) / cost.dense
    assert TIGHT < kept <= WIDE
    assert len(found.parts) > 10
    assert not torch.equal(found.scores_at(0.1), found.scores_at(1.0))


@pytest.mark.parametrize("last", [5, 20, 30])  # in the dense phase, at the end of an epoch, in the search
def test_a_search_that_was_killed_ends_the_same(problem: tuple[nn.Module, Groups, Cost], last: int) -> None:
    whole = search_for_all(training(problem, TIGHT), NullCheckpointer(), RECIPE)
    killed = Kept(last=last)
    with pytest.raises(KeyboardInterrupt):
        search_for_all(training(problem, TIGHT), killed, RECIPE)
    resumed = search_for_all(training(problem, TIGHT), Kept(killed.taken[-1]), RECIPE)
    assert torch.equal(resumed.scores, whole.scores)
    assert torch.equal(resumed.parts, whole.parts)
    mine = {name: tensor for name, tensor in resumed.snapshot.tensors.items() if name != "trainer.generators.cpu"}
    assert all(torch.equal(tensor, whole.snapshot.tensors[name]) for name, tensor in mine.items())


def test_no_step_of_the_decay_is_kept_as_one_of_the_search(problem: tuple[nn.Module, Groups, Cost]) -> None:
    kept = Kept()
    found = search_for_all(training(problem, TIGHT), kept, RECIPE)
    assert all("trainer.search.inner.controller" in " ".join(taken.tensors) for taken in kept.taken)
    assert found.snapshot.part("trainer").part("steps").values["finished"] == len(kept.taken) + 1


@pytest.mark.parametrize(("own", "far"), [(0.9, 0.2), (0.7, 0.2), (0.5, 0.3), (0.31, 0.3)])
def test_a_budget_is_passed_when_the_limit_of_the_search_is_within_it(
    problem: tuple[nn.Module, Groups, Cost], own: float, far: float
) -> None:
    cost, anneal = problem[2], RECIPE.controller.anneal
    budgets = [Budget.of_dense(cost, own)], [Budget.of_dense(cost, far)]
    passed = passed_at(*budgets, RECIPE)
    limits = {step: far * annealed_ratio(1 / far, step / 10_000, anneal) for step in range(10_001)}
    assert passed == pytest.approx(min(step for step, limit in limits.items() if limit <= own) / 10_000, abs=2e-4)


def test_the_tightest_budget_and_scores_that_follow_no_limit_are_had_at_the_end(
    problem: tuple[nn.Module, Groups, Cost],
) -> None:
    wide, tight = ([Budget.of_dense(problem[2], target)] for target in (WIDE, TIGHT))
    assert passed_at(tight, tight, RECIPE) == 1
    assert passed_at(wide, tight, dataclasses.replace(RECIPE, search="magnitude")) == 1
    assert passed_at([*wide, *tight], [*tight, *tight], RECIPE) == 1
