"""The search for a mask: the controller learns from the masked network's loss and from the budgets (ATO, eq. 3)."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from atopipe.ato import collectives
from atopipe.ato.execution import PLAIN, Execution
from atopipe.ato.groups import Groups
from atopipe.ato.recipe import Align, ControllerSettings
from atopipe.ato.search.budget import Budget, search_penalty
from atopipe.ato.search.controller import Controller, gumbel_noise, keep_probability, relaxed_mask, straight_through
from atopipe.ato.search.cost import kept_fraction
from atopipe.ato.search.masking import mask_lookups, masked_at
from atopipe.ato.search.norm_statistics import STATISTICS
from atopipe.ato.search.selection import aligned, best_groups, check_budgets, narrowest_widths, select_widths
from atopipe.ato.snapshot import Snapshot, joined, of_optimizer, restore_optimizer


class DivergedError(Exception):
    """The training loss, or what the controller makes of it, is no longer a number."""


class Search:
    """All state of the search; one call of `step` moves the controller forward and leaves the network as it is.

    The network is the one at full width. Raises BudgetError when a budget cannot be met at all.
    """

    def __init__(
        self,
        model: nn.Module,
        groups: Groups,
        budgets: Sequence[Budget],
        settings: ControllerSettings,
        align: Align,
        generator: torch.Generator,
        execution: Execution = PLAIN,
    ) -> None:
        check_budgets(groups, budgets, align)
        self.model, self.groups = model, groups
        self.settings, self.align = settings, align
        self.generator, self.execution = generator, execution
        self.lookups = mask_lookups(model, groups)
        device = next(model.parameters()).device
        self.budgets, self.budgets_here = budgets, [budget.to(device) for budget in budgets]
        self.width_steps = narrowest_widths(groups, align).to(device)
        self.controller = Controller(groups.sizes, generator).to(device)
        self.optimizer = torch.optim.AdamW(
            self.controller.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay
        )

    def scores(self) -> Tensor:
        """What the controller thinks of each group, [G]: logits, which rise with the keep-probabilities."""
        logits: Tensor = self.controller()
        return logits

    @torch.no_grad()
    def likely_mask(self) -> Tensor:
        """The groups that a sample keeps more often than not, 0/1 [G]; it may still miss the budgets."""
        return (keep_probability(self.scores(), self.settings.offset) >= 0.5).float()

    @torch.no_grad()
    def best_mask(self) -> Tensor:
        """The deterministic 0/1 mask [G], on the CPU, that the scores are worth within every budget."""
        scores = self.scores().cpu()
        if not bool(torch.isfinite(scores).all()):
            raise DivergedError("the controller's scores are no numbers any more; lower controller.learning_rate")
        return best_groups(scores, self.groups, select_widths(scores, self.groups, self.budgets, self.align))

    @torch.no_grad()
    def kept(self, mask: Tensor) -> dict[str, float]:
        """Every budget's cost of a mask [G], its widths moved up to whole steps; fractions of dense, by name."""
        widths = aligned(self.groups.widths(mask).to(self.width_steps), self.width_steps)
        return {budget.cost.name: kept_fraction(budget.cost, widths) for budget in self.budgets_here}

    def step(self, images: Tensor, labels: Tensor, progress: float) -> None:
        """One step of the controller on cross-entropy under a soft sample + weight * R(cost of a hard sample).

        `progress`: the part of the search that is over, in (0, 1].
        """
        count = max(2, math.ceil(self.settings.batch_share * len(images)))  # one image has no statistics
        images, labels = images[:count], labels[:count]
        logits = self.scores()
        with (
            STATISTICS[self.settings.statistics](self.model),
            masked_at(self.model, self.lookups, self._sample(logits)),
        ):
            loss = cross_entropy(self.execution.logits(self.model, images), labels)
        loss = loss + self.settings.budget_weight * self._penalty(self._sample(logits), progress)
        parameters = list(self.controller.parameters())
        # Only the controller's gradients are computed: the weights' would cost as much again as the rest of the step.
        gradients = torch.autograd.grad(loss, parameters)
        collectives.average(gradients)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        self.optimizer.step()

    def retire(self) -> None:
        """Let go of what only `step` needs: the mask is found."""
        self.optimizer.state.clear()
        self.optimizer.zero_grad(set_to_none=True)

    def snapshot(self) -> Snapshot:
        """The controller and its optimiser as they are now."""
        return joined(controller=Snapshot(self.controller.state_dict(), {}), optimizer=of_optimizer(self.optimizer))

    def restore(self, snapshot: Snapshot) -> None:
        """The inverse."""
        self.controller.load_state_dict(snapshot.part("controller").tensors)
        restore_optimizer(self.optimizer, snapshot.part("optimizer"))

    def _penalty(self, relaxed: Tensor, progress: float) -> Tensor:
        widths = aligned(self.groups.widths(straight_through(relaxed)), self.width_steps)
        settings = self.settings
        return search_penalty(
            self.budgets_here, widths, progress, anneal=settings.anneal, margin=settings.margin
        ).float()

    def _sample(self, logits: Tensor) -> Tensor:
        """A soft mask, [G]."""
        noise = gumbel_noise(logits, self.generator)
        return relaxed_mask(logits, noise, self.settings.offset, self.settings.temperature)
