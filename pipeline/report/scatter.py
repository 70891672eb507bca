"""Accuracy against a cost as SVG text: one mark for each network, a line through those that no other beats."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from html import escape

from atopipe.pipeline.report.charts import Frame, svg, text

WIDTH, HEIGHT = 400, 300  # fits a telephone; two stand side by side on a desk
NAMED = 10  # marks that are named; of more, and of those that are beaten, the names are tooltips
ROUND = (1, 2, 2.5, 5, 10)


@dataclass(frozen=True)
class Mark:
    """A network: its cost, its accuracy and the ends of the interval (fractions); `kind`: best, beaten or dense."""

    name: str
    cost: float
    accuracy: float
    low: float
    high: float
    kind: str


COLOURS = {"best": "first", "beaten": "rest", "dense": "second"}


def accuracy_chart(marks: Sequence[Mark], cost: str, shown: Callable[[float], str]) -> str:
    """The marks over a cost of that name; raises ValueError where there is none."""
    if not marks:
        raise ValueError("there is no network to draw")
    frame = Frame(left=48, top=16, width=WIDTH - 48 - 22, height=HEIGHT - 16 - 46)
    right = 1.06 * max(mark.cost for mark in marks)
    low, high = min(mark.low for mark in marks), max(mark.high for mark in marks)
    step = _step(max(high - low, 0.01))
    bottom, top = max(0.0, math.floor(low / step) * step), min(1.0, math.ceil(high / step) * step)

    def place(cost: float, accuracy: float) -> tuple[float, float]:
        return frame.x(cost / right), frame.y((accuracy - bottom) / (top - bottom))

    parts = [
        *_grid(frame, bottom, top, step),
        *_costs(frame, right, cost, shown),
        _front([mark for mark in marks if mark.kind == "best"], place),
        *(part for mark in marks for part in _mark(mark, place, shown)),
        *_names([mark for mark in marks if mark.kind != "beaten"], place),
    ]
    best = max(marks, key=lambda mark: mark.accuracy)
    about = f"{len(marks)} networks; the most accurate is {best.name} with {_percent(best.accuracy)}"
    return svg(parts, height=HEIGHT, width=WIDTH, title=f"Accuracy against {cost}", description=about)


def _step(span: float, parts: int = 5) -> float:
    """A round number of which some `parts` make the span."""
    size = 10.0 ** math.floor(math.log10(span / parts))
    return next(factor * size for factor in ROUND if factor * size * parts >= span)


def _grid(frame: Frame, bottom: float, top: float, step: float) -> Iterator[str]:
    for number in range(math.floor((top - bottom) / step + 0.01) + 1):
        y = frame.y(number * step / (top - bottom))
        yield f'<path class="grid" d="M{frame.left:.1f} {y:.1f}H{frame.x(1):.1f}"/>'
        yield text(frame.left - 7, y + 4, f"{100 * (bottom + number * step):.3g} %", "faint end")


def _costs(frame: Frame, right: float, cost: str, shown: Callable[[float], str]) -> Iterator[str]:
    step = _step(right, 4)
    for number in range(int(right / step) + 1):
        yield text(frame.x(number * step / right), frame.y(0) + 18, shown(number * step), "faint middle")
    yield text(frame.x(0.5), frame.y(0) + 38, cost, "faint middle")


Place = Callable[[float, float], tuple[float, float]]


def _front(marks: Sequence[Mark], place: Place) -> str:
    points = (place(mark.cost, mark.accuracy) for mark in sorted(marks, key=lambda mark: mark.cost))
    return f'<polyline class="curve first-line" points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in points)}"/>'


def _mark(mark: Mark, place: Place, shown: Callable[[float], str]) -> Iterator[str]:
    """The interval as a line, the accuracy as a point with a tooltip."""
    (x, y), low, high = place(mark.cost, mark.accuracy), place(mark.cost, mark.low)[1], place(mark.cost, mark.high)[1]
    interval = f"{_percent(mark.accuracy)} ({_percent(mark.low)} to {_percent(mark.high)})"
    tooltip = f"<title>{escape(mark.name)}: {interval}, {escape(shown(mark.cost))}</title>"
    colour = COLOURS[mark.kind]
    yield f'<rect class="{colour}" x="{x - 0.75:.1f}" y="{high:.1f}" width="1.5" height="{low - high:.1f}"/>'
    yield f'<circle class="{colour}" cx="{x:.1f}" cy="{y:.1f}" r="5">{tooltip}</circle>'


def _names(marks: Sequence[Mark], place: Place) -> Iterator[str]:
    """Below every mark, on the side where there is more room: the line through them rises."""
    for mark in marks if len(marks) <= NAMED else ():
        x, y = place(mark.cost, mark.accuracy)
        is_right = x > 0.62 * WIDTH
        yield text(x - 7 if is_right else x + 7, y + 16, mark.name, "ink end" if is_right else "ink")


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.1f} %"
