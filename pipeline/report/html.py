"""report.html: a run on one page, in one file that refers to nothing outside itself."""

import json
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from atopipe.pipeline.config.settings import COST_NAMES
from atopipe.pipeline.report.answers import CLASSES_SHOWN, class_rows, confusion, examples, read_answers
from atopipe.pipeline.report.charts import narrow_training_chart, training_chart, width_chart
from atopipe.pipeline.report.results import verdict_of
from atopipe.pipeline.report.summary import Summary, gate_title
from atopipe.pipeline.report.verdicts import gates_of
from atopipe.pipeline.rundir.directory import RunDirectory
from atopipe.pipeline.rundir.layout import MODEL, Result, file_of, versions_of
from atopipe.pipeline.system.text import milliseconds, needed_runtime, scaled

TEMPLATE = Path(__file__).parent / "report.html.j2"
LAYERS_SHOWN = 24  # the costliest; the rest are one row
VERDICTS = {
    "pass": "Every gate passed",
    "fail": "A gate failed",
    "inconclusive": "A measurement could not decide",
}


@dataclass(frozen=True)
class Bar:
    """A value on a scale from 0 to 1, and its interval where it has one; `shown` is the value in words."""

    name: str
    kind: str  # "dense" or "shrunk"
    value: float
    shown: str
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Figure:
    """One number that matters, large, with what it means."""

    value: str
    meaning: str


def render(run: RunDirectory, summary: Summary, results: Sequence[Result]) -> str:
    """The page of a run whose stages up to bundle are complete: `results`, in their order."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["scaled"] = scaled
    metrics = {name: value for result in results for name, value in result.metrics.items()}
    gates = gates_of(run)
    outcome = next((o for o in ("fail", "inconclusive") if any(g["outcome"] == o for g in gates)), "pass")
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        summary=summary,
        outcome=outcome,
        verdict=VERDICTS[outcome],
        target=summary.targets,
        figures=list(_figures(metrics)),
        gates=[{**gate, "title": gate_title(gate["name"])} for gate in gates],
        accuracy=_accuracy_bars(metrics, _images(run)),
        latency=_latency_bars(metrics),
        metrics=metrics,
        images=_images(run),
        **_answers(run),
        charts=_charts(run),
        layers=_layers(run),
        uncounted=_uncounted(run),
        structure=(structure := _read(run, "export", "structure.json")[MODEL]),
        runtime=needed_runtime(structure),
        parity=_parity(run),
        chain=results,
        models=_models(run, results),
        environment=_environment(run, results),
        command=shlex.join(["atopipe", "run", "--config", "config.yaml"]),
    )


def _answers(run: RunDirectory) -> dict[str, Any]:
    """Classes, confusions and pictures, where stage validate kept the answers."""
    answers = read_answers(run)
    if answers is None:
        return {"classes": [], "matrix": None, "examples": []}
    names = run.stages.artifact("bundle", "bundle/labels.txt").read_text(encoding="utf-8").splitlines()
    small = len(names) <= CLASSES_SHOWN
    return {
        "classes": class_rows(answers, names),
        "classes_shown": CLASSES_SHOWN,
        "names": names,
        "matrix": confusion(answers, len(names)).tolist() if small else None,
        "examples": examples(run, answers, names),
    }


def _models(run: RunDirectory, results: Sequence[Result]) -> dict[str, str]:
    """The delivered files and their digests."""
    packed = next(result.artifacts for result in results if result.stage == "bundle")
    names = [file_of(name) for name in verdict_of(run)["kept"]]
    return {name: packed[f"bundle/{name}"] for name in names}


def _read(run: RunDirectory, stage: str, name: str) -> Any:
    return json.loads(run.stages.artifact(stage, name).read_text(encoding="utf-8"))


def _images(run: RunDirectory) -> int:
    return int(_read(run, "validate", "flips.json")["shrunk_to_onnx"]["count"])


def _figures(metrics: Mapping[str, float]) -> Iterator[Figure]:
    for cost, name in COST_NAMES.items():
        if f"{cost}.shrunk" not in metrics:
            continue
        kept = f"of the {name} kept: {scaled(metrics[f'{cost}.shrunk'])} of {scaled(metrics[f'{cost}.dense'])}"
        yield Figure(f"{100 * metrics[f'{cost}.ratio']:.1f} %", kept)
    if "latency.ratio" in metrics:
        ends = f"between {1 / metrics['latency.ratio_high']:.2f} and {1 / metrics['latency.ratio_low']:.2f}"
        yield Figure(f"{1 / metrics['latency.ratio']:.2f} \N{MULTIPLICATION SIGN}", f"as fast as dense; {ends}")
    compared = (
        f"; {100 * (0.0 - metrics['accuracy.drop']):+.2f} points against dense" if "accuracy.drop" in metrics else ""
    )
    yield Figure(f"{100 * metrics['accuracy.onnx']:.2f} %", f"top-1 of the ONNX file{compared}")
    yield Figure(f"{metrics['size.shrunk_bytes'] / 1e6:.2f} MB", f"of {metrics['size.dense_bytes'] / 1e6:.2f} MB dense")


def _accuracy_bars(metrics: Mapping[str, float], images: int) -> list[Bar]:
    """Top-1 with the exact binomial intervals."""
    from atopipe.validate.accuracy import binomial_interval

    named = {"accuracy.dense": "dense, torch", "accuracy.onnx": "shrunk, ONNX"}
    bars = []
    for key, name in named.items():
        if key in metrics:
            low, high = binomial_interval(round(metrics[key] * images), images)
            kind = "dense" if key == "accuracy.dense" else "shrunk"
            bars.append(Bar(name, kind, metrics[key], f"{100 * metrics[key]:.2f} %", low, high))
    return bars


def _latency_bars(metrics: Mapping[str, float]) -> list[Bar]:
    """Medians with their intervals, on a scale that ends above the largest of all."""
    found = {kind: metrics[key] for kind in ("dense", "shrunk") if (key := f"latency.{kind}_p50_ms") in metrics}
    ends = {
        kind: [metrics.get(f"latency.{kind}_{end}_ms", value) for end in ("low", "high")]
        for kind, value in found.items()
    }
    top = 1.05 * max((high for _, high in ends.values()), default=1.0)
    return [
        Bar(kind, kind, value / top, milliseconds(value), ends[kind][0] / top, ends[kind][1] / top)
        for kind, value in found.items()
    ]


def _charts(run: RunDirectory) -> dict[str, str]:
    """The pictures as inline SVG; our own text, every name in it escaped."""
    from markupsafe import Markup
    from safetensors.numpy import load_file

    masks = load_file(run.stages.artifact("train", "masks.safetensors"))
    names = sorted(masks, key=_natural)
    before, after = [len(masks[name]) for name in names], [int(masks[name].sum()) for name in names]
    charts = {
        **_training_charts(run, "train", "training"),
        "widths": width_chart(before, after, names),
    }
    if run.config.baseline:
        charts |= _training_charts(run, "baseline", "dense")
    return {name: Markup(chart) for name, chart in charts.items()}  # noqa: S704


def _training_charts(run: RunDirectory, stage: str, name: str) -> dict[str, str]:
    history = _read(run, stage, "history.json")
    return {name: training_chart(history), f"narrow_{name}": narrow_training_chart(history)}


def _natural(name: str) -> list[tuple[int, str]]:
    """Orders layer2 before layer10."""
    return [(int(part), "") if part.isdigit() else (0, part) for part in re.split(r"(\d+)", name)]


def _layers(run: RunDirectory) -> list[dict[str, Any]]:
    """The costliest layers in the network's order, and the sum of the others; `share` is of the costliest row."""
    layers = [layer for layer in _read(run, "export", "layers.json") if None not in layer.values()]
    least = sorted((layer["dense"] for layer in layers), reverse=True)[:LAYERS_SHOWN][-1] if layers else 0
    shown = [layer for layer in layers if layer["dense"] >= least][:LAYERS_SHOWN]
    rest = [layer for layer in layers if layer not in shown]
    if rest:
        total = {kind: sum(layer[kind] for layer in rest) for kind in ("dense", "shrunk")}
        shown = [*shown, {"name": f"{len(rest)} others", **total}]
    top = max((layer["dense"] for layer in shown), default=1)
    return [{**layer, "whole": layer["dense"] / top, "kept": layer["shrunk"] / top} for layer in shown]


def _uncounted(run: RunDirectory) -> list[str]:
    """The layers whose FLOPs one of the two files does not tell."""
    return [layer["name"] for layer in _read(run, "export", "layers.json") if None in layer.values()]


def _parity(run: RunDirectory) -> dict[str, Any]:
    """What was compared, and how far it was off."""
    from atopipe.validate.parity import ROUNDING_LIMIT

    parity: dict[str, Any] = _read(run, "validate", "parity.json")
    cases: Sequence[Mapping[str, Any]] = parity["cases"]
    return {
        **parity,
        "batches": ", ".join(map(str, sorted({case["batch"] for case in cases}))),
        "count": len(cases),
        "providers": ", ".join(sorted({case["provider"] for case in cases})),
        "rounding_limit": ROUNDING_LIMIT,
    }


def _environment(run: RunDirectory, results: Sequence[Result]) -> dict[str, str]:
    """The machine that trained, and the libraries of all stages."""
    hardware = dict(results[0].machine.get("hardware", {}))
    memory = {"memory": f"{hardware.pop('memory_bytes') / 2**30:.1f} GiB"} if hardware else {}
    machine = {key: str(value) for key, value in hardware.items()}
    trained = {f"training: {key}": str(value) for key, value in _read(run, "train", "execution.json").items()}
    return {**machine, **memory, **trained, **versions_of(results)}
