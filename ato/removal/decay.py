"""Drive the groups that a mask leaves out towards zero, step by step, and exactly there in time (ATO, section 3.1)."""

import torch
from torch import Tensor, nn

from atopipe.ato.groups import Groups
from atopipe.ato.recipe import ProjectionSettings
from atopipe.ato.removal.projection import decay_step, half_space_factor, proximal_factor, set_shares
from atopipe.ato.removal.slices import GroupSlices


class Removal:
    """Moves whole groups after the optimiser has moved the weights; nothing here waits for the device."""

    def __init__(self, model: nn.Module, groups: Groups, settings: ProjectionSettings) -> None:
        self.slices = GroupSlices.of(model, groups)
        self.groups, self.epsilon = groups, settings.half_space
        sets = torch.arange(len(groups.sizes)).repeat_interleave(torch.tensor(groups.sizes))
        self.owners = sets.to(self.slices.parameters[0].device)  # of each group
        self.before: list[Tensor] = []

    @torch.no_grad()
    def remember(self) -> None:
        """Keep what the half-space step compares with: the weights before the optimiser moves them."""
        if self.epsilon is not None:
            self.before = [parameter.clone() for parameter in self.slices.parameters]

    @torch.no_grad()
    def step(self, removed: Tensor, size: float, left: int | None = None) -> None:
        """One proximal step of `size` (learning rate * lambda) on the `removed` groups, bool [G].

        With `left` it goes at least so far that `left` such steps end at exactly zero; the last one does at once.
        """
        norms = self.slices.norms()
        steps = size * self._shares(removed).to(norms)
        if left is not None:
            steps = steps.maximum(decay_step(norms, left))
        factors = proximal_factor(norms, steps)
        if self.epsilon is not None:
            factors *= self._half_space(factors, self.epsilon)
        self.slices.scale(torch.where(removed, factors, 1.0))

    def _shares(self, removed: Tensor) -> Tensor:
        """What part of the step each group takes, [G]: a set's part of all that is removed."""
        counts = self.owners.new_zeros(len(self.groups.sizes)).index_add_(0, self.owners, removed.to(self.owners))
        return set_shares(counts)[self.owners]

    def _half_space(self, factors: Tensor, epsilon: float) -> Tensor:
        previous = self.slices.products(self.before, self.before).sqrt()
        return half_space_factor(previous, self.slices.products(self.slices.parameters, self.before) * factors, epsilon)
