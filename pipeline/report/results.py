"""What a run's complete stages say together: its summary, its gates, and the exit code they mean."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from atopipe.pipeline.config.schema import FULL
from atopipe.pipeline.report.ci import append_step_summary, junit
from atopipe.pipeline.report.devices import device_lines
from atopipe.pipeline.report.summary import Summary, VariantRow, latency_facts, summarise
from atopipe.pipeline.report.verdicts import gates_of
from atopipe.pipeline.rundir.directory import RunDirectory
from atopipe.pipeline.rundir.layout import DATA, MODEL, Result
from atopipe.pipeline.system.files import write_text
from atopipe.pipeline.system.text import milliseconds, scaled


def publish_verdict(run: RunDirectory, results: Sequence[Result]) -> None:
    """What a build server reads, for a run that ends before this stage: junit.xml, summary.md and the job's summary."""
    summary = summary_of(run, results)
    write_text(run.root / "summary.md", summary.as_markdown())
    write_text(run.root / "junit.xml", junit(summary.title, gates_of(run), summary.seconds))
    append_step_summary(summary.as_markdown())


def results_of(run: RunDirectory, names: Iterable[str]) -> list[Result]:
    """Of the complete ones of these stages."""
    return [result for name in names if (result := run.stages.result(name))]


def summary_of(run: RunDirectory, results: Sequence[Result]) -> Summary:
    """What these results of a run whose stages up to validate are complete come to."""
    metrics = {name: value for result in results for name, value in result.metrics.items()}
    seconds = sum(result.seconds for result in results)
    model = run.stages.artifact("export", MODEL)
    title = f"{run.config.model.name} on {run.config.data.source}, seed {run.config.seed}"
    summary = summarise(title, metrics, gates_of(run), run.config.targets, str(model), seconds)
    devices = device_lines(run)
    latency = latency_facts(metrics) if run.config.target_latency is not None else ()
    return replace(summary, devices=devices, latency=latency, data=_remarks(run), variants=rows_of(run, metrics))


def _remarks(run: RunDirectory) -> tuple[str, ...]:
    """What stage train found odd about its data."""
    result = run.stages.result("train")
    if result is None or DATA not in result.artifacts:  # of an older version
        return ()
    return tuple(json.loads(run.stages.artifact("train", DATA).read_text(encoding="utf-8"))["remarks"])


def verdict_of(run: RunDirectory) -> dict[str, Any]:
    """What stage validate decided, as `as_json` has it; fp32 alone where no other variant was asked for."""
    if run.config.variants == (FULL,):
        return {"winner": FULL, "kept": [FULL], "dropped": {}}
    verdict: dict[str, Any] = json.loads(run.stages.artifact("validate", "variants.json").read_text(encoding="utf-8"))
    return verdict


def rows_of(run: RunDirectory, metrics: Mapping[str, float]) -> tuple[VariantRow, ...]:
    """The variants for a person, fp32 first; none where there is only that."""
    verdict = verdict_of(run)
    names = [*verdict["kept"], *verdict["dropped"]]
    return tuple(_row(name, metrics, verdict) for name in names) if len(names) > 1 else ()


def _row(name: str, metrics: Mapping[str, float], verdict: Mapping[str, Any]) -> VariantRow:
    def shown(key: str, write: Callable[[float], str]) -> str:
        return write(metrics[key]) if key in metrics else ""

    latency, top1, size = (
        ("latency.shrunk_p50_ms", "accuracy.onnx", "size.shrunk_bytes")
        if name == FULL
        else (f"latency.{name}_p50_ms", f"accuracy.{name}", f"size.{name}_bytes")
    )
    keys = (f"latency.{name}_ratio", f"latency.{name}_ratio_low", f"latency.{name}_ratio_high")
    ratio = "{:.3f} [{:.3f}, {:.3f}]".format(*(metrics[key] for key in keys)) if keys[0] in metrics else ""
    return VariantRow(
        name,
        latency=shown(latency, milliseconds),
        ratio=ratio,
        top1=shown(top1, lambda value: f"{value:.4f}"),
        size=shown(size, lambda value: f"{scaled(value)}B"),
        fastest=name == verdict["winner"],
        reason=verdict["dropped"].get(name),
    )
