"""Masks for comparisons: rules, and a controller with separate images, each as a factory of a search."""

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from atopipe.ato.removal.slices import group_norms
from atopipe.ato.search.controller_search import ControllerSearch
from atopipe.ato.search.mask_search import MakeSearch, MaskSearch, SearchProblem
from atopipe.ato.search.masking import masked_at
from atopipe.ato.search.norm_statistics import batch_statistics
from atopipe.ato.search.score_search import ScoreSearch, in_shares
from atopipe.ato.snapshot import Snapshot


def _norms(problem: SearchProblem) -> Tensor:
    return group_norms(problem.model, problem.groups)


PRIOR_IMAGES = 512

norms: MakeSearch = partial(ScoreSearch, _norms)
"""The groups with the largest norms, over all sets together."""


def shares(share: Callable[[str], float]) -> MakeSearch:
    """Widths in given proportions: `share` of a set's name; within a set the largest norm scales."""
    return partial(ScoreSearch, lambda problem: in_shares(problem, share))


class FisherPrior(ControllerSearch):
    """A controller that starts from what the weights say: its scores are added to standardised log Fisher information.

    F_g = mean over images of (dL_i / dm_g)^2 at a mask of ones (Theis et al. 2018), over the first images it is shown.
    """

    def __init__(self, problem: SearchProblem) -> None:
        super().__init__(problem)
        self.information = torch.zeros(problem.groups.total, dtype=torch.float64)
        self.seen = 0

    def scores(self) -> Tensor:
        """The controller's scores and the prior, [G]."""
        scores = super().scores()
        return scores + standardised_log(self.information).to(scores) if self.seen else scores

    def step(self, images: Tensor, labels: Tensor, progress: float) -> None:
        """Looks at the first images for the prior, and learns as ever."""
        if self.seen < PRIOR_IMAGES:
            mask = torch.ones(len(images), self.problem.groups.total, device=images.device, requires_grad=True)
            with batch_statistics(self.problem.model), masked_at(self.problem.model, self.lookups, mask):
                loss = cross_entropy(self.problem.execution.logits(self.problem.model, images), labels, reduction="sum")
            (gradient,) = torch.autograd.grad(loss, mask)
            self.information += gradient.double().square().sum(0).cpu()
            self.seen += len(images)
        super().step(images, labels, progress)


def standardised_log(information: Tensor) -> Tensor:
    """log of `information` [G], its mean 0 and deviation 1, cut at 3 deviations."""
    logs = information.clamp_min(1e-12).log()
    return ((logs - logs.mean()) / logs.std()).clamp(-3, 3)


def looking_at(batches: Iterable[tuple[Tensor, Tensor]]) -> MakeSearch:
    """A controller that looks at these batches, over and over, instead of those that the weights are trained on."""
    endless = itertools.chain.from_iterable(itertools.repeat(batches))
    return lambda problem: Elsewhere(ControllerSearch(problem), endless)


@dataclass
class Elsewhere:
    """Another search with separate images."""

    search: MaskSearch
    batches: Iterator[tuple[Tensor, Tensor]]

    def step(self, images: Tensor, labels: Tensor, progress: float) -> None:
        """A step on its own images; those of the weights are ignored."""
        self.search.step(*next(self.batches), progress)

    def scores(self) -> Tensor:
        return self.search.scores()

    def likely_mask(self) -> Tensor:
        return self.search.likely_mask()

    def best_mask(self) -> Tensor:
        return self.search.best_mask()

    def snapshot(self) -> Snapshot:
        return self.search.snapshot()

    def restore(self, snapshot: Snapshot) -> None:
        self.search.restore(snapshot)
