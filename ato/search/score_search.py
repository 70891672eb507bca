"""Searches that learn nothing: the scores are a function of the network as it stands when it is asked."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from atopipe.ato import layers
from atopipe.ato.groups import Groups
from atopipe.ato.removal.slices import group_norms
from atopipe.ato.search.mask_search import SearchProblem
from atopipe.ato.snapshot import Snapshot

Score = Callable[[SearchProblem], Tensor]  # of every group, [G]


class ScoreSearch:
    """Scores by a rule; a step changes nothing."""

    def __init__(self, score: Score, problem: SearchProblem) -> None:
        self.score, self.problem = score, problem

    @torch.no_grad()
    def scores(self) -> Tensor:
        """The scores of the rule for the current network, [G]."""
        return self.score(self.problem)

    def step(self, images: Tensor, labels: Tensor, progress: float) -> None:
        """Nothing to learn."""

    def likely_mask(self) -> Tensor:
        """The best one, on the network's device."""
        return self.best_mask().to(next(self.problem.model.parameters()).device)

    def best_mask(self) -> Tensor:
        """The 0/1 mask [G], on the CPU, that the scores are worth within every budget."""
        return self.problem.choose(self.scores(), self.problem.groups, self.problem.budgets, self.problem.align)

    def snapshot(self) -> Snapshot:
        """There is nothing but the network."""
        return Snapshot({}, {})

    def restore(self, snapshot: Snapshot) -> None:
        """Nothing to load."""


def magnitude(problem: SearchProblem) -> Tensor:
    """The norm scales of every group, [G]: over all sets together, the strongest are kept."""
    return norm_scales(problem.model, problem.groups)


def uniform(problem: SearchProblem) -> Tensor:
    """Every set keeps the same share of its groups, those with the largest norm scales."""
    return in_shares(problem, lambda name: 1.0)


def at_random(problem: SearchProblem) -> Tensor:
    """Every set keeps the same share of its groups, at random; the same ones whenever it is asked."""
    noise = torch.Generator().manual_seed(problem.generator.initial_seed())
    return torch.cat([torch.randperm(size, generator=noise).double() / size for size in problem.groups.sizes])


def in_shares(problem: SearchProblem, share: Callable[[str], float]) -> Tensor:
    """Scores [G] that give widths in proportion to size * `share` of the set's name; the largest norm scales first.

    The r-th best of n groups scores -r / (n * share): a threshold on that keeps the same r / (n * share) of every set.
    """
    groups = problem.groups
    parts = zip(groups.sets, groups.split(norm_scales(problem.model, groups)), strict=True)
    ranked = [(group_set, (-part).argsort().argsort().double() + 1) for group_set, part in parts]
    return torch.cat([-ranks / len(ranks) / share(group_set.name) for group_set, ranks in ranked])


def norm_scales(model: nn.Module, groups: Groups) -> Tensor:
    """Sum of |scale| over the norm layers each group passes, [G]; the group's own norm in sets without norm layers."""
    parts = []
    for group_set, norms in zip(groups.sets, groups.split(group_norms(model, groups)), strict=True):
        total = torch.zeros_like(norms)
        for member in group_set.members:
            layer = model.get_submodule(member.module)
            if isinstance(layer, layers.CHANNEL_NORMS):
                index, group = (places.to(norms.device) for places in (member.index, member.group))
                total.index_add_(0, group, layer.weight.detach().abs()[index].to(norms))
        parts.append(total if bool(total.any()) else norms)
    return torch.cat(parts)
