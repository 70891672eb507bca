"""Widths that hold a budget as measured, not only as modelled.

A model of a measured cost is a few per cent off, and a promise is not. Latency does not depend on weights, so that the
structure which the scores are worth can be measured at once: the limit that the model is given is corrected by what
came out, and widths are bought or sold until the measurement itself is within the limit.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from atopipe.ato.groups import Groups
from atopipe.ato.search.budget import Budget, BudgetError
from atopipe.ato.search.cost import kept_fraction
from atopipe.ato.search.selection import Align, narrowest_widths, select_widths

Measure = Callable[[Tensor], float]  # widths [sets] -> the cost in its own unit, on the bad end of its error

ROUNDS = 4
HELD = 0.97  # of the limit: what a measurement must be within, as another session of the same pair differs so much
USED = 0.94  # of the limit: widths that measure between this and `HELD` are not corrected further
AIM = 0.955  # of the limit: what is aimed at


@dataclass(frozen=True)
class Correction:
    """One round: what the model was allowed, what it expected of the widths it chose, and what they measured."""

    allowed: float
    predicted: float
    measured: float


def settle_widths(
    scores: Tensor, groups: Groups, budgets: Sequence[Budget], align: Align, measured: Budget, measure: Measure
) -> tuple[Tensor, tuple[Correction, ...]]:
    """The widths [sets] that the scores are worth within all budgets, where `measured` holds by measurement.

    Of the widths measured within `HELD` of the limit, those that use most of it. After `ROUNDS` the model's limit is
    lowered until one is. Raises BudgetError where not even the narrowest network is.
    """
    others = [budget for budget in budgets if budget is not measured]
    rounds: list[Correction] = []
    best: tuple[float, Tensor] | None = None
    allowed = AIM * measured.limit
    while True:
        narrowest = float(measured.cost(narrowest_widths(groups, align)))
        allowed = min(max(allowed, narrowest), measured.cost.dense)
        widths = select_widths(scores, groups, [*others, replace(measured, limit=allowed)], align)
        predicted, found = float(measured.cost(widths)), measure(widths)
        rounds.append(Correction(allowed, predicted, found))
        if found <= HELD * measured.limit and (best is None or found > best[0]):
            best = found, widths
        if best is not None and (best[0] >= USED * measured.limit or len(rounds) >= ROUNDS):
            return best[1], tuple(rounds)
        if found > HELD * measured.limit and allowed <= narrowest:
            raise BudgetError(
                f"target {measured.limit:.3g} {measured.cost.unit} cannot be reached here: the narrowest network, with "
                f"{kept_fraction(measured.cost, widths):.2f} of the dense cost expected, measures {found:.3g}"
            )
        allowed = _corrected(allowed, found, measured.limit, late=len(rounds) >= ROUNDS)


def _corrected(allowed: float, found: float, limit: float, *, late: bool) -> float:
    """The next limit of the model: in proportion, and beyond the planned rounds downwards by a tenth at least."""
    proportional = allowed * AIM * limit / found
    return min(proportional, 0.9 * allowed) if late else proportional
