"""Masks that no controller chose: the rules that a controller has to beat, each in the place of a search."""

import itertools
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from atopipe.ato import layers
from atopipe.ato.groups import Groups
from atopipe.ato.removal.slices import group_norms
from atopipe.ato.search.mask_search import Search


def norm_scales(model: nn.Module, groups: Groups) -> Tensor:
    """Sum of |scale| over the norm layers each group passes, [G]; the group's own norm in sets without norm layers."""
    parts = []
    for group_set, norms in zip(groups.sets, groups.split(group_norms(model, groups)), strict=True):
        total = torch.zeros_like(norms)
        for member in group_set.members:
            layer = model.get_submodule(member.module)
            if isinstance(layer, layers.CHANNEL_NORMS):
                total.index_add_(0, member.group, layer.weight.detach().abs()[member.index])
        parts.append(total if bool(total.any()) else norms)
    return torch.cat(parts)


class Unsearched(Search):
    """A rule in the controller's place: it learns nothing, and scores the groups when it is asked."""

    def step(self, images: Tensor, labels: Tensor, progress: float) -> None:
        """Nothing to learn."""


class Scales(Unsearched):
    """The groups with the largest norm scales, over all sets together."""

    def scores(self) -> Tensor:
        return norm_scales(self.model, self.groups)


class Norms(Unsearched):
    """The groups with the largest norms, over all sets together."""

    def scores(self) -> Tensor:
        return group_norms(self.model, self.groups)


def in_shares(share: Callable[[str], float]) -> type[Search]:
    """Widths in given proportions: `share` of a set's name; within a set the largest norm scales."""

    class Shares(Unsearched):
        """Fixed proportions of the widths."""

        def scores(self) -> Tensor:
            parts = zip(self.groups.sets, self.groups.split(norm_scales(self.model, self.groups)), strict=True)
            ranked = [(group_set, (-part).argsort().argsort().double() + 1) for group_set, part in parts]
            return torch.cat([-ranks / len(ranks) / share(group_set.name) for group_set, ranks in ranked])

    return Shares


Uniform = in_shares(lambda name: 1.0)


class Random(Unsearched):
    """The same share of every set, at random."""

    def scores(self) -> Tensor:
        noise = torch.Generator().manual_seed(self.generator.initial_seed())
        return torch.cat([torch.randperm(size, generator=noise).double() / size for size in self.groups.sizes])


def looking_at(batches: Iterable[tuple[Tensor, Tensor]]) -> type[Search]:
    """A controller that looks at these batches, over and over, instead of those that the weights are trained on."""
    endless = itertools.chain.from_iterable(itertools.repeat(batches))

    class Elsewhere(Search):
        """The controller with images of its own."""

        def step(self, images: Tensor, labels: Tensor, progress: float) -> None:
            super().step(*next(endless), progress)

    return Elsewhere
