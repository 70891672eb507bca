"""ATO's search: a controller learns from the masked network's loss and from the budgets (ATO, equation 3)."""

import math

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div, log_softmax

from atopipe.ato import collectives
from atopipe.ato.search.budget import search_penalty
from atopipe.ato.search.controller import Controller, gumbel_noise, keep_probability, relaxed_mask, straight_through
from atopipe.ato.search.mask_search import DivergedError, SearchProblem
from atopipe.ato.search.masking import mask_lookups, masked_at
from atopipe.ato.search.norm_statistics import STATISTICS
from atopipe.ato.search.selection import aligned, narrowest_widths
from atopipe.ato.snapshot import Snapshot, joined, of_optimizer, restore_optimizer


class ControllerSearch:
    """Scores are what the controller puts out; one call of `step` moves it forward and does not change the network."""

    def __init__(self, problem: SearchProblem) -> None:
        self.problem, self.settings = problem, problem.recipe.controller
        groups, device = problem.groups, next(problem.model.parameters()).device
        self.lookups = mask_lookups(problem.model, groups)
        self.budgets = [budget.to(device) for budget in problem.budgets]
        self.width_steps = narrowest_widths(groups, problem.align).to(device)
        self.controller = Controller(groups.sizes, problem.generator).to(device)
        self.optimizer = torch.optim.AdamW(
            self.controller.parameters(), lr=self.settings.learning_rate, weight_decay=self.settings.weight_decay
        )

    def scores(self) -> Tensor:
        """What the controller puts out, [G]; keep-probabilities rise with it."""
        scores: Tensor = self.controller()
        return scores

    @torch.no_grad()
    def likely_mask(self) -> Tensor:
        """The groups that a sample keeps more often than not, 0/1 [G]; it may still miss the budgets."""
        return (keep_probability(self.scores(), self.settings.offset) >= 0.5).float()

    @torch.no_grad()
    def best_mask(self) -> Tensor:
        """The mask [G] that the scores are worth; raises DivergedError where they are no numbers."""
        scores = self.scores().cpu()
        if not bool(torch.isfinite(scores).all()):
            raise DivergedError("the controller's logits are not finite; lower controller.learning_rate")
        return self.problem.choose(scores, self.problem.groups, self.problem.budgets, self.problem.align)

    def step(self, images: Tensor, labels: Tensor, progress: float) -> None:
        """One step of the controller on cross-entropy under a soft sample + weight * R(cost of a hard sample)."""
        count = max(2, math.ceil(self.settings.batch_share * len(images)))  # one image has no statistics
        images, labels = images[:count], labels[:count]
        scores, model = self.scores(), self.problem.model
        with STATISTICS[self.settings.statistics](model):
            wanted = self._whole_outputs(images)
            with masked_at(model, self.lookups, self._sample(scores)):
                logits = self.problem.execution.logits(model, images)
        loss = cross_entropy(logits, labels)
        if wanted is not None:
            hints = distillation_loss(logits, wanted, self.problem.recipe.distillation.temperature)
            loss = (1 - self.settings.distillation) * loss + self.settings.distillation * hints
        loss = loss + self.settings.budget_weight * self._penalty(self._sample(scores), progress)
        parameters = list(self.controller.parameters())
        # Only the controller's gradients are computed: the weights' would cost as much again as the rest of the step.
        gradients = torch.autograd.grad(loss, parameters)
        collectives.all_reduce_mean(gradients)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        self.optimizer.step()

    @torch.no_grad()
    def _whole_outputs(self, images: Tensor) -> Tensor | None:
        """What the network says with all its groups, where the controller learns from that."""
        return self.problem.execution.logits(self.problem.model, images) if self.settings.distillation > 0 else None

    def snapshot(self) -> Snapshot:
        """The controller and its optimiser as they are now."""
        return joined(controller=Snapshot(self.controller.state_dict(), {}), optimizer=of_optimizer(self.optimizer))

    def restore(self, snapshot: Snapshot) -> None:
        """Load a snapshot."""
        self.controller.load_state_dict(snapshot.part("controller").tensors)
        restore_optimizer(self.optimizer, snapshot.part("optimizer"))

    def _penalty(self, relaxed: Tensor, progress: float) -> Tensor:
        widths = aligned(self.problem.groups.widths(straight_through(relaxed)), self.width_steps)
        settings = self.settings
        penalty = search_penalty(self.budgets, widths, progress, anneal=settings.anneal, margin=settings.margin)
        return penalty.float()

    def _sample(self, scores: Tensor) -> Tensor:
        """A soft mask, [G]."""
        noise = gumbel_noise(scores, self.problem.generator)
        return relaxed_mask(scores, noise, self.settings.offset, self.settings.temperature)


def distillation_loss(logits: Tensor, wanted: Tensor, temperature: float) -> Tensor:
    """T^2 * KL(softmax(wanted / T) || softmax(logits / T)), the mean over the batch; both [B, K]."""
    ours, theirs = log_softmax(logits / temperature, 1), log_softmax(wanted / temperature, 1)
    return temperature**2 * kl_div(ours, theirs, log_target=True, reduction="batchmean")
