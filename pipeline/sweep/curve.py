"""The curve: accuracy of every run against what it costs, the dense networks, and which runs are beaten."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from atopipe.pipeline.rundir.events import read_events
from atopipe.pipeline.rundir.layout import RESULT
from atopipe.pipeline.sweep.progress import is_complete, metrics_of
from atopipe.pipeline.sweep.trials import SweepDirectory

COSTS: Mapping[str, tuple[str, str]] = {  # of a point -> what run and dense network have of it in metrics.json
    "latency_ms": ("latency.shrunk_p50_ms", "latency.dense_p50_ms"),
    "flops": ("flops.shrunk", "flops.dense"),
    "params": ("params.shrunk", "params.dense"),
    "size_bytes": ("size.shrunk_bytes", "size.dense_bytes"),
}
DENSE = "dense"


@dataclass(frozen=True)
class Point:
    """A network: its accuracy with a 95 % interval, and its `costs` by the names of `COSTS`, where measured.

    `chosen`: the values it was made with; `beaten_by`: cost -> a run with no more of it and no less accuracy, better in
    one of the two; `passed`: whether all its gates passed.
    """

    name: str
    chosen: Mapping[str, str]
    accuracy: float
    low: float
    high: float
    costs: Mapping[str, float]
    passed: bool = True
    beaten_by: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Mean:
    """What runs that differ in their seed alone have on average, and the deviation of their accuracies."""

    name: str
    seeds: int
    accuracy: float
    deviation: float
    costs: Mapping[str, float]


@dataclass(frozen=True)
class Curve:
    """All complete runs, the dense networks they are compared with, means over seeds, and what the whole took.

    `seconds`: of all stages, each counted once; `alone`: what the runs would have taken one by one, with the stages
    they took over from others.
    """

    points: tuple[Point, ...]
    dense: tuple[Point, ...]
    missing: tuple[str, ...]
    seconds: float
    alone: float
    means: tuple[Mean, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """The content of sweep.json."""
        return asdict(self)


def curve_of(sweep: SweepDirectory, chosen: Mapping[str, Mapping[str, str]]) -> Curve:
    """Of the runs of these names, each with the values it was made with."""
    complete = [name for name in chosen if is_complete(sweep.run(name))]
    points = [point for name in complete if (point := _point(name, chosen[name], sweep.run(name)))]
    spent = [_seconds(sweep.run(name)) for name in chosen]
    return Curve(
        tuple(marked(points)),
        tuple(_dense_points(complete, chosen, sweep)),
        tuple(name for name in chosen if name not in {point.name for point in points}),
        sum(own for own, _ in spent),
        sum(own + taken for own, taken in spent),
        tuple(means_of(points)),
    )


def means_of(points: Sequence[Point]) -> Iterator[Mean]:
    """One for each group of two or more runs that differ in their seed alone."""
    groups: dict[tuple[str, ...], list[Point]] = {}
    for point in points:
        groups.setdefault(tuple(value for name, value in point.chosen.items() if name != "seed"), []).append(point)
    for values, group in groups.items():
        if len(group) > 1:
            accuracies = [point.accuracy for point in group]
            costs = {c: fmean(p.costs[c] for p in group) for c in COSTS if all(c in p.costs for p in group)}
            yield Mean(" ".join(values), len(group), fmean(accuracies), stdev(accuracies), costs)


def marked(points: Sequence[Point]) -> Iterator[Point]:
    """The points, each with those that beat it."""
    for point in points:
        beaten = {cost: better.name for cost in COSTS if (better := _better(point, points, cost))}
        yield replace(point, beaten_by=beaten)


def _better(point: Point, points: Iterable[Point], cost: str) -> Point | None:
    """The most accurate of the points that beat this one at a cost; None where none does."""
    if cost not in point.costs:
        return None
    mine = (-point.accuracy, point.costs[cost])
    others = [(other, (-other.accuracy, other.costs[cost])) for other in points if cost in other.costs]
    better = [other for other, its in others if its != mine and its[0] <= mine[0] and its[1] <= mine[1]]
    return max(better, key=lambda other: other.accuracy, default=None)


def _point(name: str, chosen: Mapping[str, str], root: Path) -> Point | None:
    metrics = metrics_of(root)
    if "accuracy.onnx" not in metrics:
        return None
    low, high = _interval(metrics["accuracy.onnx"], root)
    costs = {cost: metrics[key] for cost, (key, _) in COSTS.items() if key in metrics}
    return Point(name, dict(chosen), metrics["accuracy.onnx"], low, high, costs, _passed(root))


def _dense_points(
    names: Sequence[str], chosen: Mapping[str, Mapping[str, str]], sweep: SweepDirectory
) -> Iterator[Point]:
    """One for each dense network that was trained: runs of other targets have the same."""
    known: set[str] = set()
    for name in names:
        metrics = metrics_of(sweep.run(name))
        rest = {key: value for key, value in chosen[name].items() if not key.startswith("target_")}
        title = " ".join((DENSE, *rest.values()))
        if "accuracy.dense" in metrics and title not in known:
            known.add(title)
            low, high = _interval(metrics["accuracy.dense"], sweep.run(name))
            costs = {cost: metrics[key] for cost, (_, key) in COSTS.items() if key in metrics}
            yield Point(title, rest, metrics["accuracy.dense"], low, high, costs)


def _interval(accuracy: float, root: Path) -> tuple[float, float]:
    from atopipe.validate.accuracy import binomial_interval

    images = int(_read(root / "stages/validate/flips.json")["shrunk_to_onnx"]["count"])
    return binomial_interval(round(accuracy * images), images)


def _passed(root: Path) -> bool:
    return all(gate["outcome"] == "pass" for gate in _read(root / "stages/validate/gates.json"))


def _seconds(root: Path) -> tuple[float, float]:
    """What the stages of a run took that it did itself, and those that it took over."""
    taken = {e["stage"] for e in read_events(root / "events.jsonl") if e["event"] == "stage taken over"}
    results = [_read(path) for path in sorted((root / "stages").glob(f"[!.]*/{RESULT}"))]
    seconds = {result["stage"]: float(result["seconds"]) for result in results}
    over = sum(value for stage, value in seconds.items() if stage in taken)
    return sum(seconds.values()) - over, over


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


Wanted = Callable[[Point], bool]


def best(points: Sequence[Point], *, max_latency_ms: float | None, min_accuracy: float | None) -> Point | None:
    """The most accurate point within the latency, or the fastest within the accuracy; None where none is.

    With both limits the most accurate of those within both; where no latency was measured, FLOPs count in its place.
    """
    within = [
        point
        for point in points
        if (min_accuracy is None or point.accuracy >= min_accuracy)
        and (max_latency_ms is None or point.costs.get("latency_ms", float("inf")) <= max_latency_ms)
    ]
    if max_latency_ms is not None:
        return max(within, key=lambda point: (point.accuracy, -point.costs["latency_ms"]), default=None)
    return min(within, key=lambda point: (_cost(point), -point.accuracy), default=None)


def _cost(point: Point) -> tuple[float, float]:
    return point.costs.get("latency_ms", float("inf")), point.costs.get("flops", float("inf"))
