"""Which networks are beaten, which is the best within a limit, and what is shown."""

import csv
import io
import random
from dataclasses import replace

import pytest

from atopipe.pipeline.report.scatter import Mark, accuracy_chart
from atopipe.pipeline.sweep.curve import COSTS, Curve, Point, best, marked, means_of
from atopipe.pipeline.sweep.report import as_csv, as_html, as_text


def point(name: str, accuracy: float, latency: float | None = None, flops: float = 1e6) -> Point:
    costs = {"flops": flops} if latency is None else {"latency_ms": latency, "flops": flops}
    return Point(name, {"target_flops": name}, accuracy, accuracy - 0.01, accuracy + 0.01, costs)


def test_a_run_is_beaten_by_one_that_costs_no_more_and_is_no_less_accurate() -> None:
    runs = [point("slow", 0.9, 8.0), point("fast", 0.9, 4.0), point("bad", 0.8, 6.0), point("same", 0.9, 4.0)]
    beaten = {run.name: run.beaten_by.get("latency_ms") for run in marked(runs)}
    assert beaten["slow"] in ("fast", "same")
    assert beaten["bad"] in ("fast", "same")
    assert beaten["fast"] is None
    assert beaten["same"] is None


def test_what_is_not_beaten_rises_with_its_cost() -> None:
    draw = random.Random(0)
    runs = [point(str(number), draw.random(), draw.random()) for number in range(200)]
    front = [run for run in marked(runs) if "latency_ms" not in run.beaten_by]
    ordered = sorted(front, key=lambda run: run.costs["latency_ms"])
    assert [run.accuracy for run in ordered] == sorted(run.accuracy for run in front)
    for run in marked(runs):
        better = next((other for other in runs if other.name == run.beaten_by.get("latency_ms")), None)
        if better is not None:
            assert better.accuracy >= run.accuracy
            assert better.costs["latency_ms"] <= run.costs["latency_ms"]


@pytest.mark.parametrize(
    ("latency", "accuracy", "name"),
    [(8.0, None, "b"), (8.5, None, "c"), (None, 0.85, "a"), (None, 0.9, "b"), (4.0, None, None), (5.0, 0.9, None)],
)
def test_the_best_run_within_a_limit(latency: float | None, accuracy: float | None, name: str | None) -> None:
    runs = [point("a", 0.85, 5.0), point("b", 0.9, 8.0), point("c", 0.95, 8.5), point("unmeasured", 0.99)]
    found = best(runs, max_latency_ms=latency, min_accuracy=accuracy)
    assert (found and found.name) == name


def test_the_page_and_the_table_show_every_run_and_escape_its_name() -> None:
    runs = [point("0.7", 0.92, 8.0, 7e6), point("<b>", 0.9, 9.0, 5e6)]
    dense = (point("dense", 0.93, 10.0, 1e7),)
    curve = Curve(tuple(marked(runs)), dense, ("0.2",), 100.0, 250.0)
    page, text = as_html(curve, "resnet20 & digits"), as_text(curve)
    assert "<b>" not in page
    assert "&lt;b&gt;" in page
    assert page.count("<svg") == 2  # sizes and parameters were not measured
    assert "resnet20 &amp; digits" in page
    for words in ("0.9200", "dense", "not complete: 0.2", "1 min 40 s", "4 min 10 s"):
        assert words in text
        assert words.replace("not complete", "Not complete") in page
    rows = list(csv.DictReader(io.StringIO(as_csv(curve))))
    assert [row["run"] for row in rows] == ["0.7", "<b>", "dense"]
    assert rows[1]["beaten_by"] == "0.7"
    assert {*COSTS} <= rows[0].keys()


def test_runs_that_differ_in_their_seed_alone_are_averaged() -> None:
    runs = [
        replace(point(str(n), 0.9 + n / 100, 4.0 + n), chosen={"target_flops": "0.5", "seed": str(n)}) for n in range(3)
    ]
    other = replace(point("other", 0.5), chosen={"target_flops": "0.3", "seed": "0"})
    (mean,) = means_of([*runs, other])
    assert (mean.name, mean.seeds) == ("0.5", 3)
    assert mean.accuracy == pytest.approx(0.91)
    assert mean.deviation == pytest.approx(0.01)
    assert mean.costs["latency_ms"] == pytest.approx(5)
    curve = Curve((*runs, other), (), (), 1.0, 1.0, (mean,))
    assert ["0.5", "(3)", "0.9100", "0.0100", "5", "ms", "1", "M"] in [
        line.split() for line in as_text(curve).splitlines()
    ]
    assert "Means over seeds" in as_html(curve, "title")


def test_a_chart_has_a_mark_for_every_network_within_its_frame() -> None:
    marks = [Mark(str(n), n + 1.0, 0.5 + n / 50, 0.45 + n / 50, 0.55 + n / 50, "best") for n in range(20)]
    chart = accuracy_chart(marks, "latency", "{:g} ms".format)
    assert chart.count("<circle") == 20
    heights = [float(part.split('"')[0]) for part in chart.split('cy="')[1:]]
    assert all(0 < height < 300 for height in heights)
    assert heights == sorted(heights, reverse=True)


def test_no_network_is_no_chart() -> None:
    with pytest.raises(ValueError, match="no network"):
        accuracy_chart([], "latency", str)
