"""The whole training loop on a tiny network: budget, exact zeros, and the equivalences that its shortcuts rest on."""

import copy
import dataclasses
import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from atopipe.ato.discovery.find import find_groups
from atopipe.ato.execution import Execution
from atopipe.ato.groups import Groups
from atopipe.ato.recipe import ControllerSettings, PhaseSettings, ProjectionSettings, Recipe, WeightSettings
from atopipe.ato.removal.shrink import prove_lossless, shrink
from atopipe.ato.removal.slices import group_norms
from atopipe.ato.search.budget import Budget, BudgetError
from atopipe.ato.search.controller_search import ControllerSearch
from atopipe.ato.search.cost import Cost, flops, kept_fraction
from atopipe.ato.search.mask_search import DivergedError, SearchProblem
from atopipe.ato.search.masking import masked
from atopipe.ato.training.loop import EpochRecord, Progress
from atopipe.ato.training.trainer import Trained, Trainer, train

PHASES = PhaseSettings(search=0.25, decay=0.075)
RECIPE = Recipe(phases=PHASES, epochs=6, batch_size=16, align=2, controller=ControllerSettings(learning_rate=1e-2))


@dataclass
class Blobs:
    """Images whose class is the place of a bright spot: learnt within seconds."""

    count: int
    dtype: torch.dtype = torch.float32
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
            yield images.to(self.dtype), labels


def run(model: nn.Module, recipe: Recipe = RECIPE, target: float = 0.4, seed: int = 0) -> tuple[Trained, Groups, Cost]:
    example = torch.zeros(1, 3, 8, 8)
    groups = find_groups(model, example, torch.Generator().manual_seed(seed))
    cost = flops(model, groups, example)
    generator = torch.Generator().manual_seed(seed)
    arguments = {"train_batches": Blobs(12), "val_batches": Blobs(3, seed=6), "recipe": recipe, "generator": generator}
    return train(model, groups, [Budget.of_dense(cost, target)], report=lambda _: None, **arguments), groups, cost  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "recipe",
    [
        RECIPE,
        Recipe(
            phases=PHASES, epochs=6, batch_size=16, align=2, weights=WeightSettings(optimizer="sgd", learning_rate=0.05)
        ),
        Recipe(epochs=6, align=2, phases=PhaseSettings(0.2, 0.3, 0.5), projection=ProjectionSettings(10.0, 1000.0)),
        Recipe(phases=PHASES, epochs=6, align=2, projection=ProjectionSettings(10.0, 10.0, half_space=0.1)),
        dataclasses.replace(RECIPE, search="magnitude", projection=ProjectionSettings(search_lambda=1.0)),
        Recipe(
            phases=PHASES,
            epochs=6,
            align=2,
            controller=ControllerSettings(statistics="running", every=3, anneal=0.0, margin=0.005),
        ),
    ],
    ids=["default", "sgd", "authors", "half-space", "magnitude", "running"],
)
def test_a_run_meets_the_budget_with_exact_zeros(
    network: nn.Module, recipe: Recipe, generator: torch.Generator
) -> None:
    trained, groups, cost = run(network, recipe)
    assert 0.2 < kept_fraction(cost, groups.widths(trained.mask)) <= 0.4
    assert (group_norms(trained.model, groups)[trained.mask < 0.5] == 0).all()
    assert (group_norms(trained.model, groups)[trained.mask > 0.5] > 0).all()
    small, _ = shrink(trained.model, groups, trained.mask)
    images, _ = next(iter(Blobs(1)))
    assert prove_lossless(trained.model, groups, trained.mask, small, images, generator).max_rel_diff < 1e-12


def test_one_layer_under_two_names_survives_the_cut(one_layer_two_names: nn.Module, generator: torch.Generator) -> None:
    trained, groups, _ = run(one_layer_two_names)
    small, _ = shrink(trained.model, groups, trained.mask)
    images, _ = next(iter(Blobs(1)))
    assert prove_lossless(trained.model, groups, trained.mask, small, images, generator).max_rel_diff < 1e-12


def test_the_half_space_step_remembers_no_weights_once_the_network_is_cut(residual: nn.Module, example: Tensor) -> None:
    groups = find_groups(residual, example, torch.Generator().manual_seed(0))
    budget = Budget.of_dense(flops(residual, groups, example), 0.4)
    recipe = dataclasses.replace(RECIPE, projection=ProjectionSettings(half_space=0.1))
    trainer = Trainer(residual, groups, [budget], recipe, 40, torch.Generator().manual_seed(0))
    for images, labels in Blobs(40):
        before = trainer.removal.before
        trainer.step(images, labels)
        if trainer.full is not None and trainer.finished_steps > trainer.schedule.decay_end:
            assert trainer.removal.before is before
    assert trainer.full is not None


def test_it_learns(residual: nn.Module) -> None:
    trained, _, _ = run(residual, dataclasses.replace(RECIPE, epochs=15))
    assert trained.history[-1].val_accuracy > 0.9
    assert trained.history[-1].loss < trained.history[0].loss


def test_history_tells_the_phases_and_the_budget(residual: nn.Module) -> None:
    trained, groups, cost = run(residual)
    assert [record.epoch for record in trained.history] == [1, 2, 3, 4, 5, 6]
    assert [record.phase for record in trained.history] == ["dense", "search", "search", "small", "small", "small"]
    assert trained.history[1].kept["flops"] <= 1.0
    assert trained.history[-1].kept["flops"] == kept_fraction(cost, groups.widths(trained.mask))


def test_the_same_seed_gives_the_same_bytes_and_another_seed_does_not(residual: nn.Module) -> None:
    runs = [run(copy.deepcopy(residual), seed=seed)[0] for seed in (0, 0, 1)]
    states = [torch.cat([t.flatten().double() for t in r.model.state_dict().values()]) for r in runs]
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])


@pytest.mark.parametrize(
    "weights",
    [
        WeightSettings(),
        WeightSettings(optimizer="sgd", learning_rate=0.05, mixup=0.2),
        WeightSettings(ema=0.9, clip_norm=1.0),
    ],
    ids=["adamw", "sgd with mixup", "average and clipping"],
)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "channels last"])
def test_cutting_the_network_during_training_changes_nothing(
    network: nn.Module, example: Tensor, weights: WeightSettings, layout: torch.memory_format
) -> None:
    """Weights, moments, averages and statistics carry over: in float64 both ways differ by rounding only."""
    network = network.double()
    groups = find_groups(network, example, torch.Generator().manual_seed(0))
    cost, batches = flops(network.float(), groups, example), list(Blobs(40, torch.float64))
    results = []
    for live_shrink in (True, False):
        model = copy.deepcopy(network).double()
        recipe = dataclasses.replace(RECIPE, live_shrink=live_shrink, weights=weights)
        budget = Budget.of_dense(cost, 0.4)
        noise, execution = torch.Generator().manual_seed(0), Execution(memory_format=layout)
        trainer = Trainer(model, groups, [budget], recipe, len(batches), noise, execution)
        losses = torch.stack([trainer.step(*batch)[0] for batch in batches])
        results.append((losses, shrink(trainer.trained_model()[0], groups, trainer.trained_model()[1])[0].state_dict()))
    (losses, state), (wanted_losses, wanted) = results
    torch.testing.assert_close(losses, wanted_losses, rtol=1e-9, atol=1e-9)
    for name, tensor in wanted.items():
        torch.testing.assert_close(state[name], tensor, rtol=1e-7, atol=1e-9)


def test_the_controller_step_leaves_weights_and_statistics_alone(residual: nn.Module, example: Tensor) -> None:
    groups = find_groups(residual, example, torch.Generator().manual_seed(0))
    cost = flops(residual, groups, example)
    trainer = Trainer(residual, groups, [Budget.of_dense(cost, 0.4)], RECIPE, 40, torch.Generator().manual_seed(0))
    before = copy.deepcopy(residual.state_dict())
    assert trainer.search is not None
    logits = trainer.search.scores().detach()
    trainer.search.step(*next(iter(Blobs(1))), progress=0.5)
    after = residual.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not torch.equal(trainer.search.scores(), logits)
    assert all(p.grad is None for p in residual.parameters())


def test_the_search_reaches_the_budget_by_itself(residual: nn.Module, example: Tensor) -> None:
    """The freeze must be no jump: what the controller would keep at the end is already near the target."""
    trained, _, _ = run(
        residual, Recipe(phases=PHASES, epochs=20, align=2, controller=ControllerSettings(learning_rate=1e-2))
    )
    last_search = [record for record in trained.history if record.phase == "search"][-2]
    assert last_search.kept["flops"] == pytest.approx(0.4, abs=0.12)


def half_useful() -> nn.Module:
    """A trained network whose classifier reads the first 8 of 16 channels only."""
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.AdaptiveMaxPool2d(2),
        nn.Flatten(),
        nn.Linear(64, 5),
    )
    head, optimizer = model[5], torch.optim.Adam(model.parameters(), lr=1e-2)
    for images, labels in Blobs(80):
        with torch.no_grad():
            head.weight[:, 32:] = 0.0
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
    with torch.no_grad():
        head.weight[:, 32:] = 0.0
    return model


def masked_accuracy(model: nn.Module, groups: Groups, mask: Tensor) -> float:
    with masked(model.eval(), groups, mask), torch.no_grad():
        return float(torch.stack([(model(x).argmax(1) == y).float().mean() for x, y in Blobs(20, seed=9)]).mean())


def test_the_search_keeps_the_groups_that_the_loss_needs(example: Tensor) -> None:
    """At half the width: a random mask leaves some 0.8 of the accuracy, what the search removes some 0.6."""
    model = half_useful()
    groups = find_groups(model, example, torch.Generator().manual_seed(0))
    recipe = Recipe(align=1, controller=ControllerSettings(learning_rate=1e-2, anneal=0.0))
    budget = Budget.of_dense(flops(model, groups, example), 0.5)
    kept, removed = [], []
    for seed in range(3):
        noise = torch.Generator().manual_seed(seed)
        search = ControllerSearch(SearchProblem(model, groups, [budget], recipe, noise))
        for images, labels in Blobs(150):
            search.step(images, labels, progress=1.0)
        kept.append(masked_accuracy(model, groups, search.best_mask()))
        removed.append(masked_accuracy(model, groups, 1 - search.best_mask()))
    assert sum(kept) / 3 > 0.93
    assert sum(removed) / 3 < 0.8


def test_an_impossible_budget_stops_before_the_first_step(residual: nn.Module) -> None:
    before = copy.deepcopy(residual.state_dict())
    with pytest.raises(BudgetError, match="cannot be reached"):
        run(residual, target=0.001)
    assert all(torch.equal(before[name], tensor) for name, tensor in residual.state_dict().items())


def test_a_diverging_run_stops_with_the_step_and_a_remedy(residual: nn.Module) -> None:
    recipe = Recipe(phases=PHASES, epochs=6, align=2, weights=WeightSettings(optimizer="sgd", learning_rate=1e30))
    with pytest.raises(
        DivergedError, match=r"the training loss is (nan|inf) after step \d+; lower weights.learning_rate"
    ):
        run(residual, recipe)


def test_progress_is_reported_while_an_epoch_runs(residual: nn.Module, example: Tensor) -> None:
    groups = find_groups(residual, example, torch.Generator().manual_seed(0))
    heard: list[Progress | EpochRecord] = []
    train(
        residual,
        groups,
        [Budget.of_dense(flops(residual, groups, example), 0.5)],
        train_batches=Blobs(25),
        val_batches=Blobs(1),
        recipe=Recipe(phases=PHASES, epochs=2, align=2),
        generator=torch.Generator().manual_seed(0),
        report=heard.append,
    )
    assert [e.step for e in heard if isinstance(e, Progress)] == [10, 20, 30, 40, 50]
    assert [e.epoch for e in heard if isinstance(e, EpochRecord)] == [1, 2]
