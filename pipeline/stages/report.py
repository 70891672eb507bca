"""Say what came out: report.html and summary.md for people, junit.xml for build servers, and the closing table."""

import json
from dataclasses import replace
from typing import Any

from atopipe.pipeline.build_server import append_step_summary, junit
from atopipe.pipeline.config import TARGETS
from atopipe.pipeline.devices import devices_of
from atopipe.pipeline.files import write_text
from atopipe.pipeline.run_directory import RunDirectory
from atopipe.pipeline.runner import Context
from atopipe.pipeline.stages import baseline
from atopipe.pipeline.summary import Summary, summarise

NAME = "report"
SUMMARISED = ("train", "baseline", "shrink", "export", "validate")
INPUTS = (*SUMMARISED, "bundle")
SETTINGS = ("model", "data", *TARGETS, "baseline", "gates", "seed")
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


def summary_of(run: RunDirectory) -> Summary:
    """The summary of a run whose stages up to validate are complete."""
    names = [name for name in SUMMARISED if name != baseline.NAME or baseline.is_wanted(run.config)]
    results = [result for name in names if (result := run.result(name))]
    metrics = {name: value for result in results for name, value in result.metrics.items()}
    seconds = sum(result.seconds for result in results)
    model = run.artifact("export", "model.onnx")
    title = f"{run.config.model.name} on {run.config.data.source}, seed {run.config.seed}"
    summary = summarise(title, metrics, gates_of(run), run.config.targets, str(model), seconds)
    return replace(summary, devices=tuple(device.sentence() for device in devices_of(run)))
