"""Say what came out: report.html and summary.md for people, junit.xml for build servers, and the closing table."""

from atopipe.pipeline.config.settings import TARGETS
from atopipe.pipeline.engine.stage import Context, Stage
from atopipe.pipeline.report.ci import junit
from atopipe.pipeline.report.results import results_of, summary_of
from atopipe.pipeline.report.verdicts import gates_of
from atopipe.pipeline.system.files import write_text


def run(context: Context) -> dict[str, float]:
    from atopipe.pipeline.report.html import render

    results = results_of(context.run, context.stage.inputs)
    summary = summary_of(context.run, results)
    files = {
        "summary.md": summary.as_markdown(),
        "report.html": render(context.run, summary, results),
        "junit.xml": junit(summary.title, gates_of(context.run), summary.seconds),
    }
    for name, content in files.items():
        write_text(context.folder / name, content)
        write_text(context.run.root / name, content)
    return {}


STAGE = Stage(
    name="report",
    run=run,
    inputs=("train", "baseline", "shrink", "export", "quantize", "validate", "bundle"),
    settings=("model", "data", *TARGETS, "baseline", "variants", "gates", "seed"),
    libraries=("jinja2",),
    published=True,
)
