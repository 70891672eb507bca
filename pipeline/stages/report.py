"""Say what came out: report.html and summary.md for people, junit.xml for build servers, and the closing table."""

import json
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from atopipe.pipeline.build_server import append_step_summary, junit
from atopipe.pipeline.devices import devices_of
from atopipe.pipeline.files import write_text
from atopipe.pipeline.flags import TARGETS
from atopipe.pipeline.run_directory import Result, RunDirectory
from atopipe.pipeline.runner import Context
from atopipe.pipeline.stages import baseline, quantize
from atopipe.pipeline.summary import Summary, summarise
from atopipe.pipeline.variants import rows_of

NAME = "report"
SUMMARISED = ("train", "baseline", "shrink", "export", "quantize", "validate")
INPUTS = (*SUMMARISED, "bundle")
SETTINGS = ("model", "data", *TARGETS, "baseline", "variants", "gates", "seed")
LIBRARIES = ("jinja2",)


def run(context: Context) -> dict[str, float]:
    from atopipe.pipeline.page import render

    summary = summary_of(context.run)
    files = {
        "summary.md": summary.as_markdown(),
        "report.html": render(context.run, summary),
        "junit.xml": junit(summary.title, gates_of(context.run), summary.seconds),
    }
    for name, content in files.items():
        write_text(context.folder / name, content)
        write_text(context.run.root / name, content)
    return {}


def publish_verdict(run: RunDirectory) -> None:
    """What a build server reads, for a run that ends before this stage: junit.xml, summary.md and the job's summary."""
    summary = summary_of(run)
    write_text(run.root / "summary.md", summary.as_markdown())
    write_text(run.root / "junit.xml", junit(summary.title, gates_of(run), summary.seconds))
    append_step_summary(summary.as_markdown())


def gates_of(run: RunDirectory) -> list[dict[str, Any]]:
    """The verdicts of stage validate."""
    gates: list[dict[str, Any]] = json.loads(run.artifact("validate", "gates.json").read_text(encoding="utf-8"))
    return gates


def results_of(run: RunDirectory, names: Iterable[str]) -> list[Result]:
    """Of the complete ones of these stages; one that is no longer asked for does not count."""
    wanted = {baseline.NAME: baseline.is_wanted(run.config), quantize.NAME: quantize.is_wanted(run.config)}
    return [result for name in names if wanted.get(name, True) and (result := run.result(name))]


def summary_of(run: RunDirectory) -> Summary:
    """The summary of a run whose stages up to validate are complete."""
    results = results_of(run, SUMMARISED)
    metrics = {name: value for result in results for name, value in result.metrics.items()}
    seconds = sum(result.seconds for result in results)
    model = run.artifact("export", "model.onnx")
    title = f"{run.config.model.name} on {run.config.data.source}, seed {run.config.seed}"
    summary = summarise(title, metrics, gates_of(run), run.config.targets, str(model), seconds)
    devices = tuple(device.sentence() for device in devices_of(run))
    return replace(summary, devices=devices, variants=rows_of(run, metrics))
