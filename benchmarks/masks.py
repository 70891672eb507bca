"""Masks for comparisons: rules, and a controller with separate images, each as a factory of a search."""

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from atopipe.ato.removal.slices import group_norms
from atopipe.ato.search.controller_search import ControllerSearch
from atopipe.ato.search.mask_search import MakeSearch, MaskSearch, SearchProblem
from atopipe.ato.search.score_search import ScoreSearch, in_shares
from atopipe.ato.snapshot import Snapshot


def _norms(problem: SearchProblem) -> Tensor:
    return group_norms(problem.model, problem.groups)


norms: MakeSearch = partial(ScoreSearch, _norms)
"""The groups with the largest norms, over all sets together."""


def shares(share: Callable[[str], float]) -> MakeSearch:
    """Widths in given proportions: `share` of a set's name; within a set the largest norm scales."""
    return partial(ScoreSearch, lambda problem: in_shares(problem, share))


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
