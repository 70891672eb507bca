"""Say what came out: summary.md, and what the closing table shows."""

import json

from atopipe.pipeline.config import TARGETS
from atopipe.pipeline.run_directory import RunDirectory, write_text
from atopipe.pipeline.runner import Context
from atopipe.pipeline.stages import baseline
from atopipe.pipeline.summary import Summary, summarise

NAME = "report"
INPUTS = ("train", "baseline", "shrink", "export", "validate")
SETTINGS = ("model", "data", *TARGETS, "baseline", "seed")
LIBRARIES: tuple[str, ...] = ()


def run(context: Context) -> dict[str, float]:
    markdown = summary_of(context.run).as_markdown()
    write_text(context.folder / "summary.md", markdown)
    write_text(context.run.root / "summary.md", markdown)
    return {}


def summary_of(run: RunDirectory) -> Summary:
    """The summary of a run whose stages up to validate are complete."""
    names = [name for name in INPUTS if name != baseline.NAME or baseline.is_wanted(run.config)]
    results = [result for name in names if (result := run.result(name))]
    metrics = {name: value for result in results for name, value in result.metrics.items()}
    gates = json.loads(run.artifact("validate", "gates.json").read_text(encoding="utf-8"))
    seconds = sum(result.seconds for result in results)
    model = run.artifact("export", "model.onnx")
    title = f"{run.config.model.name} on {run.config.data.source}, seed {run.config.seed}"
    return summarise(title, metrics, gates, run.config.targets, str(model), seconds)
