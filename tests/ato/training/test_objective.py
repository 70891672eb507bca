"""What the weights are trained for: formulas against independent ones, and a teacher through a whole run."""

import copy
import dataclasses

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from atopipe.ato.discovery.capture import head_layer
from atopipe.ato.discovery.find import find_groups
from atopipe.ato.execution import PLAIN, Execution
from atopipe.ato.recipe import ControllerSettings, PhaseSettings, Recipe, WeightSettings
from atopipe.ato.removal.shrink import prove_lossless, shrink
from atopipe.ato.search.budget import Budget
from atopipe.ato.search.controller_search import ControllerSearch, distillation_loss
from atopipe.ato.search.cost import flops
from atopipe.ato.search.mask_search import SearchProblem
from atopipe.ato.training.objective import CrossEntropy, Distillation
from atopipe.ato.training.trainer import Trainer
from atopipe.ato.training.weights import WeightTrainer, mixing

IMAGES, LABELS = torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(1)), torch.arange(16) % 5


class Counting(nn.Module):
    """A teacher that knows what it was shown, and how."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.seen = nn.Linear(192, 5), list[Tensor]()

    def forward(self, images: Tensor) -> Tensor:
        assert not self.training
        assert not torch.is_grad_enabled()
        self.seen.append(images)
        logits: Tensor = self.layer(images.flatten(1))
        return logits


@pytest.mark.parametrize("temperature", [1.0, 2.0, 5.0])
def test_distillation_is_the_divergence_of_softened_predictions(temperature: float) -> None:
    ours, theirs = torch.randn(7, 5, dtype=torch.float64, requires_grad=True), torch.randn(7, 5, dtype=torch.float64)
    p, q = ((logits / temperature).softmax(1) for logits in (theirs, ours))
    by_hand = temperature**2 * (p * (p / q).log()).sum(1).mean()
    torch.testing.assert_close(distillation_loss(ours, theirs, temperature), by_hand)
    assert distillation_loss(theirs, theirs, temperature).abs() < 1e-12
    assert torch.autograd.gradcheck(lambda logits: distillation_loss(logits, theirs, temperature), ours)


def test_at_a_high_temperature_logits_are_matched() -> None:
    """Hinton et al. 2015: for large T the loss tends to half the mean square of the centred logits' difference."""
    ours, theirs = (torch.randn(7, 5, dtype=torch.float64) for _ in range(2))
    difference = ours - theirs
    centred = difference - difference.mean(1, keepdim=True)
    assert distillation_loss(ours, theirs, 1e4).item() == pytest.approx(
        0.5 * centred.square().mean(1).mean().item(), 1e-3
    )


def test_an_objective_weighs_labels_and_teacher() -> None:
    teacher, logits = Counting(), torch.randn(16, 5)
    loss = Distillation(CrossEntropy(0.1), teacher, weight=0.25, temperature=2.0).on(IMAGES)(logits, LABELS)
    hints = distillation_loss(logits, teacher.layer(IMAGES.flatten(1)), 2.0)
    torch.testing.assert_close(loss, 0.75 * cross_entropy(logits, LABELS, label_smoothing=0.1) + 0.25 * hints)
    assert not any(parameter.requires_grad for parameter in teacher.parameters())


def test_a_mixed_batch_is_shown_to_the_teacher_once_as_the_student_sees_it(residual: nn.Module) -> None:
    teacher = Counting()
    objective = Distillation(CrossEntropy(), teacher, 0.5, 2.0)
    settings, before = WeightSettings(mixup=0.5), copy.deepcopy(residual).train()
    trainer = WeightTrainer(residual, settings, PLAIN, torch.Generator().manual_seed(0), objective)
    loss, _ = trainer.step(IMAGES, LABELS, 0.01)
    share, order = mixing(16, 0.5, torch.Generator().manual_seed(0))
    (seen,) = teacher.seen
    torch.testing.assert_close(seen, share * IMAGES + (1 - share) * IMAGES[order])
    logits = before(seen)
    labels = share * cross_entropy(logits, LABELS) + (1 - share) * cross_entropy(logits, LABELS[order])
    torch.testing.assert_close(
        loss, 0.5 * labels.detach() + 0.5 * distillation_loss(logits, teacher.layer(seen.flatten(1)), 2.0).detach()
    )


def test_the_teacher_runs_in_the_students_number_format() -> None:
    teacher = Counting()
    wanted = teacher.layer(IMAGES.flatten(1))
    logits = torch.randn(16, 5)
    short = Distillation(CrossEntropy(), teacher, 1.0, 1.0, Execution(torch.bfloat16)).on(IMAGES)(logits, LABELS)
    exact = distillation_loss(logits, wanted, 1.0)
    assert short.dtype is torch.float32
    assert short != exact
    torch.testing.assert_close(short, exact, rtol=0.1, atol=0.02)


def test_a_run_with_a_teacher_is_cut_and_stays_lossless(residual: nn.Module, example: Tensor) -> None:
    teacher = copy.deepcopy(residual)
    before = copy.deepcopy(teacher.state_dict())
    groups = find_groups(residual, example, torch.Generator().manual_seed(0))
    budget = Budget.of_dense(flops(residual, groups, example), 0.5)
    recipe = Recipe(align=2, phases=PhaseSettings(search=0.25, decay=0.075), weights=WeightSettings(mixup=0.2))
    objective = Distillation(CrossEntropy(0.1), teacher, 0.9, 2.0)
    trainer = Trainer(residual, groups, [budget], recipe, 20, torch.Generator().manual_seed(0), objective=objective)
    for _ in range(20):
        trainer.step(IMAGES, LABELS)
    assert trainer.full is not None
    model, mask = trainer.trained_model()
    small, _ = shrink(model, groups, mask)
    assert prove_lossless(model, groups, mask, small, IMAGES, torch.Generator()).max_rel_diff < 1e-12
    assert all(torch.equal(before[name], tensor) for name, tensor in teacher.state_dict().items())


def test_the_controller_may_learn_from_the_whole_network(residual: nn.Module, example: Tensor) -> None:
    """Without labels, labels make no difference; with them alone, they do."""
    groups = find_groups(residual, example, torch.Generator().manual_seed(0))
    budget = Budget.of_dense(flops(residual, groups, example), 0.5)

    def scores(part: float, labels: Tensor) -> Tensor:
        settings = ControllerSettings(distillation=part, batch_share=1.0)
        recipe = Recipe(align=1, controller=settings)
        search = ControllerSearch(SearchProblem(residual, groups, [budget], recipe, torch.Generator().manual_seed(0)))
        search.step(IMAGES, labels, 0.5)
        return search.scores().detach()

    assert torch.equal(scores(1.0, LABELS), scores(1.0, 4 - LABELS))
    assert not torch.equal(scores(0.0, LABELS), scores(0.0, 4 - LABELS))
    assert not torch.equal(scores(0.5, LABELS), scores(1.0, LABELS))


def test_the_head_learns_at_a_rate_of_its_own_before_and_after_the_cut(network: nn.Module, example: Tensor) -> None:
    head = head_layer(network, example)
    assert head == "head"
    groups = find_groups(network, example, torch.Generator().manual_seed(0))
    budget = Budget.of_dense(flops(network, groups, example), 0.5)
    weights = WeightSettings("sgd", learning_rate=0.01, momentum=0.0, weight_decay=0.0, head_rate=3.0, warmup=0.0)
    recipe = dataclasses.replace(Recipe(align=2), weights=weights)
    trainer = Trainer(network, groups, [budget], recipe, 10, torch.Generator().manual_seed(0), head=head)
    for _ in range(10):
        model, rate = trainer.weights.model, trainer.learning_rate()
        before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
        trainer.weights.step(IMAGES, LABELS, rate)
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None
            moved = before[name] - parameter.detach()
            multiple = 3.0 if name.startswith("head.") else 1.0
            torch.testing.assert_close(moved, multiple * rate * parameter.grad, rtol=1e-3, atol=1e-6)
        trainer._advance()
    assert trainer.full is not None
