"""The weight step: mixup, the moving average and clipping do what their papers say."""

import copy
import gc
import weakref
from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

from atopipe.ato.discovery.find import find_groups
from atopipe.ato.execution import PLAIN, Execution, best_memory_format
from atopipe.ato.recipe import Recipe, WeightSettings
from atopipe.ato.removal.slices import scale_groups
from atopipe.ato.removal.structure import structure_of
from atopipe.ato.training.dense import train_dense
from atopipe.ato.training.weights import WeightTrainer, mix, mixing

IMAGES, LABELS = torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(1)), torch.arange(16) % 5


class Again(list[tuple[Tensor, Tensor]]):
    """The same batches in the same order in every epoch."""

    def order(self) -> Tensor:
        return torch.zeros(1)

    def resume(self, order: Tensor, done: int) -> Iterator[tuple[Tensor, Tensor]]:
        return iter(self[done:])


def trainer(model: nn.Module, settings: WeightSettings, execution: Execution = PLAIN) -> WeightTrainer:
    return WeightTrainer(model, settings, execution, torch.Generator().manual_seed(0))


def test_mixup_mixes_images_and_the_loss_of_both_labels(residual: nn.Module) -> None:
    """Both must use the same share and the same partners: the loss of a linear-in-targets cross-entropy."""
    state = copy.deepcopy(residual)
    loss, _ = trainer(residual, WeightSettings(mixup=0.5, label_smoothing=0.0)).step(IMAGES, LABELS, 0.01)
    share, order = mixing(16, 0.5, torch.Generator().manual_seed(0))
    targets = share * torch.eye(5)[LABELS] + (1 - share) * torch.eye(5)[LABELS[order]]
    wanted = cross_entropy(state.train()(share * IMAGES + (1 - share) * IMAGES[order]), targets)
    assert 0 < share < 1
    torch.testing.assert_close(loss, wanted.detach())


def test_without_mixup_images_pass_untouched() -> None:
    share, order = mixing(16, 0.0, torch.Generator())
    assert mix(IMAGES, share, order) is IMAGES


def test_mixing_shares_follow_their_distribution() -> None:
    generator = torch.Generator().manual_seed(0)
    shares = torch.tensor([mixing(2, 0.4, generator)[0] for _ in range(4000)])
    assert shares.mean() == pytest.approx(0.5, abs=0.03)
    assert shares.var() == pytest.approx(1 / (4 * 1.8), abs=0.01)  # of Beta(a, a): 1 / (4 * (2 a + 1))


def test_the_average_is_the_exponential_mean_of_the_weights(residual: nn.Module) -> None:
    weights = trainer(residual, WeightSettings(ema=0.8))
    wanted: Tensor | None = None
    for _ in range(5):
        weights.step(IMAGES, LABELS, 0.05)
        weights.average_in()
        now = residual.head.weight.detach()
        wanted = now.clone() if wanted is None else 0.8 * wanted + 0.2 * now
    torch.testing.assert_close(weights.delivered.head.weight, wanted)  # type: ignore[union-attr, arg-type]
    assert not torch.equal(weights.delivered.head.weight, residual.head.weight)  # type: ignore[union-attr, arg-type]


def test_clipping_bounds_the_norm_of_the_whole_gradient(residual: nn.Module) -> None:
    weights = trainer(residual, WeightSettings(clip_norm=0.01))
    weights.step(IMAGES, LABELS, 1e-3)
    norm = torch.cat([p.grad.flatten() for p in residual.parameters() if p.grad is not None]).norm()
    assert norm == pytest.approx(0.01, rel=1e-3)


def test_bfloat16_changes_the_step_by_its_rounding_only(network: nn.Module) -> None:
    losses = [
        trainer(copy.deepcopy(network), WeightSettings(), Execution(precision)).step(IMAGES, LABELS, 1e-3)[0]
        for precision in (torch.float32, torch.bfloat16)
    ]
    assert losses[0] != losses[1]
    assert losses[1].dtype is torch.float32
    torch.testing.assert_close(*losses, rtol=0.05, atol=0.05)


def test_the_compiled_step_is_the_same_step(residual: nn.Module) -> None:
    def compiled(model: nn.Module) -> nn.Module:
        return torch.compile(model, backend="aot_eager")  # type: ignore[return-value]

    losses = [
        torch.stack([weights.step(IMAGES, LABELS, 0.01)[0] for _ in range(3)])
        for weights in (
            trainer(copy.deepcopy(residual), WeightSettings()),
            trainer(copy.deepcopy(residual), WeightSettings(), Execution(wrap=compiled)),
        )
    ]
    torch.testing.assert_close(*losses)


@pytest.fixture
def alone() -> Iterator[None]:
    """A process group of this process only."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("alone")
def test_the_cut_network_has_a_reducer_of_its_own_and_the_old_one_is_gone(residual: nn.Module, example: Tensor) -> None:
    """A reducer that stayed would keep averaging gradients of the full network, and hold its memory."""
    plain = copy.deepcopy(residual)
    weights = trainer(residual, WeightSettings(), Execution(wrap=DistributedDataParallel))
    weights.step(IMAGES, LABELS, 0.01)
    old = weakref.ref(weights.forward)
    groups = find_groups(plain, example, torch.Generator().manual_seed(0))
    mask = torch.ones(groups.total)
    mask[::3] = 0
    scale_groups(weights.model, groups, mask)
    weights.cut(structure_of(weights.model, groups, mask))
    gc.collect()
    assert old() is None
    assert isinstance(weights.forward, DistributedDataParallel)
    assert weights.forward.module is weights.model
    weights.step(IMAGES, LABELS, 0.01)


def test_a_network_that_views_activations_gets_the_layout_it_needs(residual: nn.Module) -> None:
    class Views(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x).view(len(x), -1)

        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

    example = torch.zeros(1, 3, 8, 8)
    assert best_memory_format(residual, example) is torch.channels_last
    assert best_memory_format(Views(), example) is torch.contiguous_format


def test_the_dense_network_learns_by_the_same_recipe(residual: nn.Module) -> None:
    batches = Again([(IMAGES, LABELS)] * 10)
    recipe = Recipe(epochs=4, weights=WeightSettings(learning_rate=0.01))
    model, history = train_dense(
        residual,
        train_batches=batches,
        val_batches=batches,
        recipe=recipe,
        generator=torch.Generator().manual_seed(0),
        report=lambda _: None,
    )
    assert not model.training
    assert [record.phase for record in history] == ["dense"] * 4
    assert history[-1].loss < history[0].loss / 2
