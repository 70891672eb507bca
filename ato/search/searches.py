"""The searches by the names that a recipe knows."""

from collections.abc import Mapping
from functools import partial

from atopipe.ato.search.controller_search import ControllerSearch
from atopipe.ato.search.mask_search import MakeSearch
from atopipe.ato.search.score_search import ScoreSearch, at_random, magnitude, uniform

SEARCHES: Mapping[str, MakeSearch] = {
    "controller": ControllerSearch,
    "magnitude": partial(ScoreSearch, magnitude),
    "random": partial(ScoreSearch, at_random),
    "uniform": partial(ScoreSearch, uniform),
}
