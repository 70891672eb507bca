"""The pictures of a run: well-formed, complete, to scale, and self-contained."""

import itertools
import math
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable
from typing import Any

import pytest

from atopipe.pipeline.report.charts import narrow_training_chart, training_chart, width_chart

PHASES = ("dense",) * 3 + ("search",) * 8 + ("decay",) * 3 + ("small",) * 10
HISTORY: list[dict[str, Any]] = [
    {
        "epoch": epoch,
        "phase": phase,
        "val_accuracy": 0.5 + 0.49 * math.sin(epoch) ** 2,
        "kept": {"flops": max(0.3, 1 - epoch / 15), "params": max(0.2, 1 - epoch / 15)},
    }
    for epoch, phase in enumerate(PHASES, start=1)
]
NAMES = ["conv1", "layer1.0.conv1", "layer2.0.conv1"]
BEFORE, AFTER = [64, 128, 512], [56, 32, 512]
CHARTS = {
    "training": training_chart(HISTORY),
    "widths": width_chart(BEFORE, AFTER, NAMES),
    "narrow": narrow_training_chart(HISTORY),
}


def elements(svg: str, tag: str, colour: str = "") -> list[ET.Element]:
    """The elements of one kind, and of one colour class where that is given, in drawing order."""
    found = ET.fromstring(svg).iter(f"{{http://www.w3.org/2000/svg}}{tag}")  # noqa: S314 - our own text
    return [element for element in found if not colour or colour in element.get("class", "").split()]


def number(element: ET.Element, attribute: str) -> float:
    return float(element.attrib[attribute])


def words(svg: str) -> list[str]:
    return [element.text or "" for element in elements(svg, "text")]


def height_of(svg: str, percent: int) -> float:
    """Where the axis says that a percentage lies: the grid line, told by its place among those labels."""
    labels = [text for text in words(svg) if re.fullmatch(r"\d+ %", text)]
    lines = elements(svg, "path", "grid")
    found = re.fullmatch(r"M[\d.]+ ([\d.]+)H[\d.]+", lines[labels.index(f"{percent} %")].attrib["d"])
    assert found
    return float(found[1])


@pytest.mark.parametrize(
    ("colour", "read_from"),
    [
        ("first", lambda record: record["val_accuracy"]),
        ("second", lambda record: record["kept"]["flops"]),
        ("third", lambda record: record["kept"]["params"]),
    ],
)
def test_every_epoch_is_a_point_at_the_height_that_the_axis_gives(
    colour: str, read_from: Callable[[dict[str, Any]], float]
) -> None:
    svg = CHARTS["training"]
    zero, full = height_of(svg, 0), height_of(svg, 100)
    points = elements(svg, "circle", colour)
    read = [(zero - number(point, "cy")) / (zero - full) for point in points]
    assert read == pytest.approx([read_from(record) for record in HISTORY], abs=1e-3)
    assert [point[0].text or "" for point in points][6].startswith(f"epoch 7: {100 * read_from(HISTORY[6]):.1f} %")


@pytest.mark.parametrize("colour", ["first", "second", "third"])
def test_the_line_runs_through_the_points(colour: str) -> None:
    points = [f"{c.attrib['cx']},{c.attrib['cy']}" for c in elements(CHARTS["training"], "circle", colour)]
    (line,) = elements(CHARTS["training"], "polyline", f"{colour}-line")
    assert line.attrib["points"].split() == points


def test_epochs_are_evenly_spaced_and_named_below() -> None:
    centres = [number(point, "cx") for point in elements(CHARTS["training"], "circle", "first")]
    gaps = [right - left for left, right in itertools.pairwise(centres)]
    assert gaps == pytest.approx([gaps[0]] * 23, abs=0.11)
    labels = {t.text: number(t, "x") for t in elements(CHARTS["training"], "text", "middle")}
    assert labels["24"] == pytest.approx(centres[-1])


def test_each_phase_is_a_named_band_around_its_epochs() -> None:
    bands = {band[0].text: band for band in elements(CHARTS["training"], "rect") if len(band)}
    assert list(bands) == ["dense", "search", "decay", "small"]
    assert set(bands) <= set(words(CHARTS["training"]))
    centres = [number(point, "cx") for point in elements(CHARTS["training"], "circle", "first")]
    for centre, phase in zip(centres, PHASES, strict=True):
        left = number(bands[phase], "x")
        assert left < centre < left + number(bands[phase], "width")


def test_the_last_values_stand_beside_the_ends_and_never_on_each_other() -> None:
    last = {"epoch": 1, "phase": "small", "val_accuracy": 0.9917, "kept": {"flops": 0.99}}
    svg = training_chart([last])
    ends = elements(svg, "text", "value")
    assert [end.text for end in ends] == ["99.2 %", "99.0 %"]
    assert "FLOPs kept" in words(svg)
    assert number(ends[1], "y") - number(ends[0], "y") >= 40


def test_a_history_of_an_older_version_is_drawn_the_same() -> None:
    now = {"epoch": 1, "phase": "small", "val_accuracy": 0.5, "kept": {"flops": 0.25}}
    before = {"epoch": 1, "phase": "small", "val_accuracy": 0.5, "flops_kept": 0.25}
    assert training_chart([before]) == training_chart([now])


def test_a_bar_is_as_long_as_its_width() -> None:
    svg = CHARTS["widths"]
    whole = [bar for bar in elements(svg, "rect", "rest") if len(bar)]
    kept = [bar for bar in elements(svg, "rect", "first") if number(bar, "height") == number(whole[0], "height")]
    unit = number(whole[2], "width") / 512
    assert [number(bar, "width") for bar in whole] == pytest.approx([unit * n for n in BEFORE], abs=0.06)
    assert [number(bar, "width") for bar in kept] == pytest.approx([unit * n for n in AFTER], abs=0.06)
    assert [number(bar, "x") for bar in kept] == [number(bar, "x") for bar in whole]
    assert [text for text in words(svg) if " of " in text] == ["56 of 64", "32 of 128", "512 of 512"]


def test_everything_lies_within_the_picture() -> None:
    for svg in CHARTS.values():
        _, _, width, height = map(float, ET.fromstring(svg).attrib["viewBox"].split())  # noqa: S314
        for element in [*elements(svg, "rect"), *elements(svg, "text"), *elements(svg, "circle")]:
            x, y = (float(element.get(k, element.get(f"c{k}", "0"))) for k in ("x", "y"))
            assert 0 <= x <= x + float(element.get("width", "0")) <= width
            assert 0 <= y <= y + float(element.get("height", "0")) <= height


@pytest.mark.parametrize("name", CHARTS)
def test_nothing_outside_the_picture_is_needed_to_see_it(name: str) -> None:
    bare = CHARTS[name].replace('xmlns="http://www.w3.org/2000/svg"', "")
    assert not re.search(r"href|url\(|@import|@font-face|<script|<image|://", bare)


@pytest.mark.parametrize("name", CHARTS)
def test_both_colour_schemes_give_every_class_its_colour(name: str) -> None:
    light, _, dark = CHARTS[name].partition("</style>")[0].partition("@media (prefers-color-scheme:dark)")
    rules = [dict(re.findall(r"\.([\w-]+)\{(?:fill|stroke):(#\w{6})\}", part)) for part in (light, dark)]
    assert rules[0].keys() == rules[1].keys() >= {"paper", "ink", "first", "second", "rest"}
    assert all(rules[0][colour] != rules[1][colour] for colour in rules[0])


def test_names_are_escaped() -> None:
    name = 'a<b> & "c"'
    assert name in words(width_chart([4], [2], [name]))
    history = [{**HISTORY[0], "phase": name}]
    assert name in words(training_chart(history))


@pytest.mark.parametrize("epochs", [3, 24, 300])
def test_the_narrow_chart_shows_every_epoch_and_says_its_lines_below(epochs: int) -> None:
    history = [{**HISTORY[0], "epoch": epoch} for epoch in range(1, epochs + 1)]
    svg = narrow_training_chart(history)
    assert number(elements(svg, "rect", "paper")[0], "width") <= 360
    assert len(elements(svg, "circle", "first")) == epochs
    numbers = [number(text, "x") for text in elements(svg, "text", "middle") if (text.text or "").isdigit()]
    assert all(right - left >= 24 for left, right in itertools.pairwise(numbers))
    assert [text for text in words(svg) if ": " in text] == [
        f"validation accuracy: {100 * HISTORY[0]['val_accuracy']:.1f} %",
        "FLOPs kept: 93.3 %",
        "parameters kept: 93.3 %",
    ]


def test_what_cannot_be_drawn_is_refused() -> None:
    with pytest.raises(ValueError, match="no epoch"):
        training_chart([])
    with pytest.raises(ValueError, match="no group set"):
        width_chart([], [], [])
    with pytest.raises(ValueError, match="argument"):
        width_chart([4, 4], [2], ["a"])


def test_many_epochs_stay_readable() -> None:
    history = [{**HISTORY[0], "epoch": epoch} for epoch in range(1, 301)]
    svg = training_chart(history)
    assert len(elements(svg, "circle")) == 900
    assert len([text for text in words(svg) if text.isdigit()]) <= 12
