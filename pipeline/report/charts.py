"""Pictures of a run as SVG text, drawn without a plotting library: pure functions of numbers and names.

Colours follow the reader's light or dark setting; nothing outside the text is referred to, so a picture may stand alone
in a file or inline in a page.
"""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from atopipe.pipeline.config.settings import COST_NAMES

WIDTH, NARROW = 860, 350  # px; the latter for telephones
EPOCH_PITCH = 26  # px that the number of an epoch needs
TRAINING = "Accuracy and costs per epoch"
TICKS = (1, 2, 5, 10, 20, 25, 50, 100, 200, 500, 1000)
CHARACTER = 7.3  # width to reserve per character of 12 px, in px

LIGHT = {
    "paper": "#ffffff",
    "band": "#f2f5f9",
    "line": "#e1e6ed",
    "ink": "#1c2733",
    "faint": "#5d6b7a",
    "first": "#1f63d6",
    "second": "#c2610c",
    "third": "#7a3fb0",
    "rest": "#d3deee",
}
DARK = {
    "paper": "#0d1117",
    "band": "#161d27",
    "line": "#28313d",
    "ink": "#e6edf3",
    "faint": "#98a4b3",
    "first": "#6ea8ff",
    "second": "#f0a04b",
    "third": "#c79bf2",
    "rest": "#2a3a54",
}


@dataclass(frozen=True)
class Frame:
    """The rectangle of a plot, in px; maps fractions of its sides to positions. Vertically 1 is the top."""

    left: float
    top: float
    width: float
    height: float

    def x(self, fraction: float) -> float:
        return self.left + fraction * self.width

    def y(self, fraction: float) -> float:
        return self.top + (1 - fraction) * self.height


@dataclass(frozen=True)
class Series:
    """One line of a chart: fractions per epoch, the words at its end and the colour class of its strokes."""

    name: str
    values: Sequence[float]
    colour: str


def training_chart(history: Sequence[Mapping[str, Any]]) -> str:
    """Accuracy on validation images and what is kept of each cost after every epoch, over the phases of the run.

    `history`: the records of history.json, in order; the keys epoch, phase, val_accuracy and kept are read.
    Raises ValueError when there is no epoch.
    """
    frame = Frame(left=52, top=44, width=WIDTH - 52 - 150, height=270)
    parts = [*_plot(frame, history), *_end_labels(frame, _series(history))]
    return svg(parts, height=372, title=TRAINING, description=_outcome(history))


def narrow_training_chart(history: Sequence[Mapping[str, Any]]) -> str:
    """The same for a narrow screen: what its lines are stands below."""
    frame = Frame(left=50, top=44, width=NARROW - 50 - 12, height=230)
    series = _series(history)
    parts = [*_plot(frame, history), *_labels_below(frame, series)]
    return svg(parts, width=NARROW, height=330 + 22 * len(series), title=TRAINING, description=_outcome(history))


def _series(history: Sequence[Mapping[str, Any]]) -> tuple[Series, ...]:
    if not history:
        raise ValueError("there is no epoch to draw")
    return (
        Series("validation accuracy", [record["val_accuracy"] for record in history], "first"),
        *(
            Series(f"{COST_NAMES[cost]} kept", [_kept(record)[cost] for record in history], colour)
            for cost, colour in zip(_kept(history[-1]), ("second", "third"), strict=False)
        ),
    )


def _plot(frame: Frame, history: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    epochs = [record["epoch"] for record in history]
    yield from _bands(frame, [record["phase"] for record in history])
    yield from _grid(frame)
    yield from _epoch_axis(frame, epochs)
    for line in _series(history):
        yield from _curve(frame, line, epochs)


def _outcome(history: Sequence[Mapping[str, Any]]) -> str:
    """The last epoch in words, for who cannot see the picture."""
    last = history[-1]
    return f"{len(history)} epochs; at the end {_percent(last['val_accuracy'])} validation accuracy" + "".join(
        f", {_percent(fraction)} of the {COST_NAMES[cost]} kept" for cost, fraction in _kept(last).items()
    )


def _kept(record: Mapping[str, Any]) -> Mapping[str, float]:
    """What an epoch kept of each cost; older versions wrote one number, called FLOPs."""
    kept: Mapping[str, float] = record["kept"] if "kept" in record else {"flops": record["flops_kept"]}
    return kept


def width_chart(widths_before: Sequence[int], widths_after: Sequence[int], names: Sequence[str]) -> str:
    """A horizontal bar per group set: its width before pruning, and how much of it was kept.

    The three sequences run in parallel. Raises ValueError when they are empty or differ in length.
    """
    rows = list(zip(names, widths_before, widths_after, strict=True))
    if not rows:
        raise ValueError("there is no group set to draw")
    pitch, top = 19, 48
    label = 8 + CHARACTER * max(len(name) for name in names)
    frame = Frame(left=label, top=top, width=WIDTH - label - 162, height=pitch * len(rows))
    parts = [*_width_heading(frame), *_width_bars(frame, rows, pitch)]
    kept, total = sum(widths_after), sum(widths_before)
    return svg(
        parts,
        height=top + pitch * len(rows) + 16,
        title="Width of every group set",
        description=f"{kept:,} of {total:,} channel groups kept in {len(rows)} group sets",
    )


def _bands(frame: Frame, phases: Sequence[str]) -> Iterator[str]:
    """A shaded background for every phase, every other one darker, with its name above."""
    start = 0
    for number, (phase, members) in enumerate(itertools.groupby(phases)):
        end = start + len(list(members))
        left, right = frame.x(start / len(phases)), frame.x(end / len(phases))
        shade = "band" if number % 2 else "paper"
        yield rectangle(left, frame.top - 26, right - left, frame.height + 26, shade, phase)
        if right - left > CHARACTER * len(phase):
            yield text((left + right) / 2, frame.top - 9, phase, "faint middle")
        start = end


def _grid(frame: Frame) -> Iterator[str]:
    for percent in (0, 25, 50, 75, 100):
        y = frame.y(percent / 100)
        yield f'<path class="grid" d="M{frame.left:.1f} {y:.1f}H{frame.x(1):.1f}"/>'
        yield text(frame.left - 8, y + 4, f"{percent} %", "faint end")


def _epoch_axis(frame: Frame, epochs: Sequence[int]) -> Iterator[str]:
    room = min(12, frame.width / EPOCH_PITCH)
    step = next((tick for tick in TICKS if len(epochs) / tick <= room), TICKS[-1])
    for position, epoch in enumerate(epochs):
        if epoch % step == 0:
            yield text(_centre(frame, position, len(epochs)), frame.y(0) + 20, str(epoch), "faint middle")
    yield text(frame.x(0.5), frame.y(0) + 42, "epoch", "faint middle")


def _curve(frame: Frame, series: Series, epochs: Sequence[int]) -> Iterator[str]:
    """The line through all epochs, and a point with a tooltip on each; points shrink where there are many."""
    count = len(series.values)
    points = [(_centre(frame, i, count), frame.y(value)) for i, value in enumerate(series.values)]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    yield f'<polyline class="curve {series.colour}-line" points="{path}"/>'
    radius = min(3.0, 90 / count)
    for (x, y), epoch, value in zip(points, epochs, series.values, strict=True):
        tooltip = f"<title>epoch {epoch}: {_percent(value)} {escape(series.name)}</title>"
        yield f'<circle class="{series.colour}" cx="{x:.1f}" cy="{y:.1f}" r="{radius:.2f}">{tooltip}</circle>'


def _end_labels(frame: Frame, series: Sequence[Series]) -> Iterator[str]:
    """Name and last value beside the end of every line, moved apart where lines end close together."""
    heights = _apart([frame.y(line.values[-1]) for line in series], gap=42)
    for line, y in zip(series, heights, strict=True):
        yield text(frame.x(1) + 8, y + 1, _percent(line.values[-1]), f"{line.colour} value")
        yield text(frame.x(1) + 8, y + 17, line.name, line.colour)


def _labels_below(frame: Frame, series: Sequence[Series]) -> Iterator[str]:
    """Name and last value of every line, one below the other."""
    for number, line in enumerate(series):
        words = f"{line.name}: {_percent(line.values[-1])}"
        yield text(frame.left, frame.y(0) + 68 + 22 * number, words, line.colour)


def _apart(heights: Sequence[float], gap: float) -> list[float]:
    """The same heights in the same order, each at least `gap` below the one above it."""
    order = sorted(range(len(heights)), key=lambda i: heights[i])
    placed = list(heights)
    for above, below in itertools.pairwise(order):
        placed[below] = max(placed[below], placed[above] + gap)
    return placed


def _width_heading(frame: Frame) -> Iterator[str]:
    y = frame.top - 20
    yield rectangle(frame.left, y - 9, 10, 10, "first")
    yield text(frame.left + 16, y, "kept", "ink")
    yield rectangle(frame.left + 66, y - 9, 10, 10, "rest")
    yield text(frame.left + 82, y, "removed", "ink")
    yield text(WIDTH - 14, y, "channels kept", "faint end")


def _width_bars(frame: Frame, rows: Iterable[tuple[str, int, int]], pitch: int) -> Iterator[str]:
    rows = list(rows)
    widest = max(before for _, before, _ in rows)
    for number, (name, before, after) in enumerate(rows):
        y = frame.top + number * pitch
        whole, kept = (frame.width * count / widest for count in (before, after))
        yield text(frame.left - 8, y + 11, name, "faint end")
        yield rectangle(frame.left, y + 1, whole, pitch - 6, "rest", f"{name}: {after:,} of {before:,} kept")
        yield rectangle(frame.left, y + 1, kept, pitch - 6, "first")
        yield text(frame.left + whole + 7, y + 11, f"{100 * after / before:.0f} %", "faint")
        yield text(WIDTH - 14, y + 11, f"{after:,} of {before:,}", "ink end")


def _centre(frame: Frame, position: int, count: int) -> float:
    return frame.x((position + 0.5) / count)


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.1f} %"


def text(x: float, y: float, words: str, classes: str) -> str:
    """Words at a place."""
    return f'<text class="{classes}" x="{x:.1f}" y="{y:.1f}">{escape(words)}</text>'


def rectangle(x: float, y: float, width: float, height: float, colour: str, tooltip: str = "") -> str:
    """A filled rectangle."""
    shape = f'<rect class="{colour}" x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}"'
    return f"{shape}><title>{escape(tooltip)}</title></rect>" if tooltip else f"{shape}/>"


def svg(parts: Iterable[str], *, width: int = WIDTH, height: float, title: str, description: str) -> str:
    """A whole picture of these parts."""
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="atopipe-chart" role="img" viewBox="0 0 {width} {height:g}" '
        f'width="{width}" height="{height:g}">'
    )
    about = f"<title>{escape(title)}</title><desc>{escape(description)}</desc>"
    paper = f'<rect class="paper" width="{width}" height="{height:g}" rx="8"/>'
    return "\n".join([head, about, f"<style>{_style()}</style>", paper, *parts, "</svg>\n"])


def _style() -> str:
    """The style sheet; every rule is confined to the chart, since an inline picture shares its page's."""
    rules = [
        "text{font:12px system-ui,-apple-system,'Segoe UI','DejaVu Sans',sans-serif}",
        ".value{font-size:17px;font-weight:600}",
        ".middle{text-anchor:middle}",
        ".end{text-anchor:end}",
        ".grid{fill:none;stroke-width:1}",
        ".curve{fill:none;stroke-width:2.25;stroke-linejoin:round}",
    ]
    fixed = "".join(f".atopipe-chart {rule}" for rule in rules)
    return f"{fixed}{_colours(LIGHT)}@media (prefers-color-scheme:dark){{{_colours(DARK)}}}"


def _colours(palette: Mapping[str, str]) -> str:
    fills = "".join(f".atopipe-chart .{name}{{fill:{colour}}}" for name, colour in palette.items())
    strokes = "".join(f".atopipe-chart .{name}-line{{stroke:{palette[name]}}}" for name in ("first", "second", "third"))
    return f"{fills}{strokes}.atopipe-chart .grid{{fill:none;stroke:{palette['line']}}}"
