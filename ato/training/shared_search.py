"""One search for runs that differ in their budgets alone.

The search goes on to the tightest budgets, and its limits pass those of every other run on the way. Its weights never
depend on its masks, so all runs can begin from the network at its end: each with the mask that the scores were worth
when its own budgets were passed.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from atopipe.ato.recipe import Recipe
from atopipe.ato.schedule import Phase
from atopipe.ato.search.budget import Budget
from atopipe.ato.search.mask_search import MakeSearch, MaskSearch, SearchProblem
from atopipe.ato.search.searches import SEARCHES
from atopipe.ato.snapshot import Snapshot, joined, tensors_only
from atopipe.ato.training.loop import Checkpointer

PARTS = 100  # of the search; the scores at the end of each are kept


@dataclass(frozen=True)
class SharedSearch:
    """A run at the end of its search, and the scores [R, G] after the `parts` [R] of it, in hundredths."""

    snapshot: Snapshot
    parts: Tensor
    scores: Tensor

    def scores_at(self, progress: float) -> Tensor:
        """The scores [G] once so much of the search, in [0, 1], was over."""
        return self.scores[int((self.parts < _part(progress)).sum())]

    def branch(self, mask: Tensor) -> Snapshot:
        """The same run with this mask [G] in the place of the one that its search ended with."""
        name = "trainer.frozen.mask"
        return Snapshot({**self.snapshot.tensors, name: mask.to(self.snapshot.tensors[name])}, self.snapshot.values)

    def as_snapshot(self) -> Snapshot:
        """All of it, for a file."""
        return joined(run=self.snapshot, recorded=tensors_only(parts=self.parts, scores=self.scores))

    @staticmethod
    def of(snapshot: Snapshot) -> "SharedSearch":
        """What `as_snapshot` gave."""
        return SharedSearch(snapshot.part("run"), **snapshot.part("recorded").tensors)


class RecordedSearch:
    """Another search, and its scores on the way."""

    def __init__(self, inner: MaskSearch) -> None:
        self.inner, self.records = inner, dict[int, Tensor]()
        self.scores, self.likely_mask, self.best_mask = inner.scores, inner.likely_mask, inner.best_mask

    def step(self, images: Tensor, labels: Tensor, progress: float) -> None:
        """A step of the search; the last scores of each part of it stay."""
        self.inner.step(images, labels, progress)
        self.records[_part(progress)] = self.scores().detach().cpu()

    def snapshot(self) -> Snapshot:
        """The search and what was recorded."""
        return joined(inner=self.inner.snapshot(), records=tensors_only(**self.recorded() if self.records else {}))

    def restore(self, snapshot: Snapshot) -> None:
        """Load a snapshot."""
        self.inner.restore(snapshot.part("inner"))
        kept = snapshot.part("records").tensors
        self.records = dict(zip(kept["parts"].tolist(), kept["scores"], strict=True)) if kept else {}

    def recorded(self) -> dict[str, Tensor]:
        """`parts` and `scores` of a `SharedSearch`."""
        return {"parts": torch.tensor(list(self.records)), "scores": torch.stack(list(self.records.values()))}


def _part(progress: float) -> int:
    """The number, from 1, of the hundredth of the search that ends at or after `progress`."""
    return math.ceil(round(progress * PARTS, 9))


class _SearchEnded(Exception):
    """Carries the run at the end of its search out of the loop over its steps."""

    def __init__(self, snapshot: Snapshot) -> None:
        super().__init__()
        self.snapshot = snapshot


class _UntilFrozen:
    """Another checkpointer, until the mask is frozen."""

    def __init__(self, inner: Checkpointer) -> None:
        self.inner, self.latest = inner, inner.latest

    def after_step(self, phase: str, take: Callable[[], Snapshot]) -> None:
        """As the other one does, or out of the loop."""
        if phase not in (Phase.DENSE, Phase.SEARCH):
            raise _SearchEnded(take())
        self.inner.after_step(phase, take)


def search_for_all(train: Callable[..., Any], checkpointer: Checkpointer, recipe: Recipe) -> SharedSearch:
    """The end of the search of a run that `train` begins or takes up again: `trainer.train`, all else given to it."""
    recorders: list[RecordedSearch] = []

    def make_search(problem: SearchProblem) -> MaskSearch:
        recorders.append(RecordedSearch(_search_of(recipe)(problem)))
        return recorders[-1]

    try:
        train(checkpointer=_UntilFrozen(checkpointer), make_search=make_search)
    except _SearchEnded as ended:
        return SharedSearch(ended.snapshot, **recorders[-1].recorded())
    raise AssertionError("a run ends after its search")


def _search_of(recipe: Recipe) -> MakeSearch:
    return SEARCHES[recipe.search]


def passed_at(budgets: Sequence[Budget], shared: Sequence[Budget], recipe: Recipe) -> float:
    """The part of the search towards the `shared` budgets that is over when its limits are within all `budgets`.

    Both are of the same costs in the same order. From `search_penalty`: a limit falls geometrically from dense, over
    the fraction `anneal` of the search. The budgets that the search goes on to, and scores that follow no limit, are
    had at its end.
    """
    if recipe.search != "controller":
        return 1.0
    return max(_passed(own, far, recipe.controller.anneal) for own, far in zip(budgets, shared, strict=True))


def _passed(own: Budget, far: Budget, anneal: float) -> float:
    if own.limit <= far.limit:
        return 1.0
    dense = own.cost.dense
    return anneal * math.log(dense / min(own.limit, dense)) / math.log(dense / far.limit)
