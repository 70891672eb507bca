"""A sweep, shown: sweep.html, sweep.json, sweep.csv, and a table for the terminal."""

import csv
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from atopipe.pipeline.report.scatter import Mark, accuracy_chart
from atopipe.pipeline.report.tables import Side, aligned
from atopipe.pipeline.sweep.curve import COSTS, Curve, Point
from atopipe.pipeline.sweep.trials import RUNS
from atopipe.pipeline.system.files import write_json, write_text
from atopipe.pipeline.system.text import duration, milliseconds, printable, scaled

TEMPLATE = Path(__file__).parent / "sweep.html.j2"
HEADINGS = ("run", "top-1", "95 % interval", "latency", "FLOPs", "parameters", "file", "gates", "beaten by")
SHOWN: Mapping[str, tuple[str, Callable[[float], str]]] = {
    "latency_ms": ("latency", milliseconds),
    "flops": ("FLOPs per image", scaled),
    "params": ("parameters", scaled),
    "size_bytes": ("size of the ONNX file", lambda value: f"{scaled(value)}B"),
}


@dataclass(frozen=True)
class Row:
    """A network in words; `link` leads to its report."""

    cells: tuple[str, ...]
    link: str = ""


def write_report(root: Path, curve: Curve, title: str) -> None:
    """Writes the three files into the sweep's directory."""
    write_json(root / "sweep.json", curve.as_dict())
    write_text(root / "sweep.csv", as_csv(curve))
    write_text(root / "sweep.html", as_html(curve, title))


def as_text(curve: Curve) -> str:
    """The runs as a table, and what they took."""
    rows = [HEADINGS, *(tuple(map(printable, row.cells)) for row in _rows(curve))]
    sides: list[Side] = ["right" for _ in HEADINGS]
    sides[0] = sides[-1] = "left"
    means = ["", aligned(list(_means(curve)), sides[:-3])] if curve.means else []
    missing = [f"not complete: {', '.join(map(printable, curve.missing))}"] if curve.missing else []
    return "\n".join([aligned(rows, sides), *means, "", *missing, spent(curve)])


def spent(curve: Curve) -> str:
    """What the whole took, and what sharing saved."""
    saved = ""
    if curve.alone > curve.seconds:
        saved = f"; one by one, without sharing, the runs would take {duration(curve.alone)}"
    return f"all stages took {duration(curve.seconds)}{saved}"


def as_csv(curve: Curve) -> str:
    """One line for each network, numbers in full."""
    text = io.StringIO()
    settings = sorted({name for point in curve.points for name in point.chosen})
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["run", *settings, "accuracy", "low", "high", *COSTS, "passed", "beaten_by"])
    for point in (*curve.points, *curve.dense):
        costs = [point.costs.get(cost, "") for cost in COSTS]
        chosen = [point.chosen.get(name, "") for name in settings]
        ends = [point.accuracy, point.low, point.high]
        writer.writerow([point.name, *chosen, *ends, *costs, point.passed, beaten(point)])
    return text.getvalue()


def as_html(curve: Curve, title: str) -> str:
    """One self-contained page."""
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        title=title,
        cost=f"{len(curve.points)} runs; {spent(curve)}.",
        missing=curve.missing,
        charts=[Markup(chart) for chart in _charts(curve)],  # noqa: S704  # our own text, every name in it escaped
        headings=HEADINGS,
        rows=list(_rows(curve)),
        means=list(_means(curve)),
    )


def beaten(point: Point) -> str:
    """The run that beats this one at latency or, where that was not measured, at FLOPs; empty where none does."""
    return point.beaten_by.get(main_cost(point), "")


def main_cost(point: Point) -> str:
    """What a run costs first of all."""
    return "latency_ms" if "latency_ms" in point.costs else "flops"


def _rows(curve: Curve) -> Iterator[Row]:
    for point in sorted((*curve.points, *curve.dense), key=lambda point: point.costs.get("flops", 0.0), reverse=True):
        costs = (shown(point.costs[cost]) if cost in point.costs else "" for cost, (_, shown) in SHOWN.items())
        interval = f"{point.low:.4f} to {point.high:.4f}"
        is_run = point in curve.points
        gates = ("pass" if point.passed else "fail") if is_run else ""
        link = f"{RUNS}/{point.name}/report.html" if is_run else ""
        yield Row((point.name, f"{point.accuracy:.4f}", interval, *costs, gates, beaten(point)), link)


def _means(curve: Curve) -> Iterator[tuple[str, ...]]:
    """The means over seeds in words, below their headings; nothing where there are none."""
    if curve.means:
        yield ("mean of seeds", "top-1", "deviation", *(name for name, _ in SHOWN.values()))
    for mean in curve.means:
        costs = (shown(mean.costs[cost]) if cost in mean.costs else "" for cost, (_, shown) in SHOWN.items())
        yield (f"{mean.name} ({mean.seeds})", f"{mean.accuracy:.4f}", f"{mean.deviation:.4f}", *costs)


def _charts(curve: Curve) -> Iterator[str]:
    for cost, (name, shown) in SHOWN.items():
        if marks := [*_marks(curve.points, cost), *_marks(curve.dense, cost, "dense")]:
            yield accuracy_chart(marks, name, shown)


def _marks(points: Sequence[Point], cost: str, kind: str | None = None) -> Iterator[Mark]:
    for point in points:
        if cost in point.costs:
            this = kind or ("beaten" if cost in point.beaten_by else "best")
            yield Mark(point.name, point.costs[cost], point.accuracy, point.low, point.high, this)
