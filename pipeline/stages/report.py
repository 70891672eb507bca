"""Say what came out: report.html and summary.md for people, junit.xml for build servers, and the closing table."""

from atopipe.pipeline.config.flags import TARGETS
from atopipe.pipeline.engine.stage import Context
from atopipe.pipeline.report.ci import junit
from atopipe.pipeline.report.results import SUMMARISED, gates_of, summary_of
from atopipe.pipeline.system.files import write_text

NAME = "report"


INPUTS = (*SUMMARISED, "bundle")
SETTINGS = ("model", "data", *TARGETS, "baseline", "variants", "gates", "seed")
LIBRARIES = ("jinja2",)


def run(context: Context) -> dict[str, float]:
    from atopipe.pipeline.report.html import render

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
