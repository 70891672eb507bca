"""What came out of a run, for a person: rows of dense against shrunk, the verdicts, where the model lies."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from atopipe.pipeline.config.settings import COST_NAMES
from atopipe.pipeline.config.targets import Target
from atopipe.pipeline.report.tables import aligned
from atopipe.pipeline.system.text import duration, in_markdown, milliseconds, printable, scaled

GATES: Mapping[str, str] = {
    "lossless.max_rel_diff": "masked = shrunk",
    "parity.max_rel_diff": "torch = ONNX Runtime",
    "parity.float64_rel_diff": "float64 = ONNX Runtime",
    "parity.rounding_ratio": "rounding error vs torch",
    "flops.ratio": "FLOPs within target",
    "params.ratio": "parameters within target",
    "flops.shrunk": "FLOPs within target",
    "params.shrunk": "parameters within target",
    "accuracy.above_majority": "top-1 above always one class",
    "accuracy.onnx_images_off": "top-1 difference (images)",
}
CHOSEN_GATES: Mapping[str, str] = {
    "accuracy.drop": "accuracy below dense",
    "accuracy.onnx": "accuracy",
    "latency.speedup": "speed-up",
    "latency.shrunk_p50_ms": "latency in ms",
    "size.shrunk_mb": "ONNX file in MB",
}


@dataclass(frozen=True)
class Row:
    """One quantity of the dense and of the shrunk network, ready to print."""

    name: str
    dense: str
    shrunk: str
    ratio: str


@dataclass(frozen=True)
class Verdict:
    """One gate: `outcome` is pass, fail or inconclusive."""

    name: str
    outcome: str
    detail: str


@dataclass(frozen=True)
class VariantRow:
    """One variant of the model, ready to print: empty where not measured; `ratio` is of fp32's latency.

    `fastest`: of what is delivered, on the machine of the run; `reason`: why it is not delivered, None where it is.
    """

    name: str
    latency: str
    ratio: str
    top1: str
    size: str
    fastest: bool
    reason: str | None

    @property
    def outcome(self) -> str:
        """One word or two for what became of it."""
        return "dropped" if self.reason else "fastest here" if self.fastest else "delivered"

    def sentence(self) -> str:
        """One line for the terminal."""
        ratio = f"{self.ratio} of fp32" if self.ratio else ""
        figures = ", ".join(filter(None, [self.latency, ratio, f"top-1 {self.top1}" if self.top1 else "", self.size]))
        return f"{self.name}: {self.outcome}; " + "; ".join(filter(None, [figures, self.reason]))


@dataclass(frozen=True)
class Summary:
    """Everything the closing table and summary.md say."""

    title: str
    rows: tuple[Row, ...]
    verdicts: tuple[Verdict, ...]
    cost: str  # what pruning cost in accuracy, in one line
    targets: str  # read both ways
    model: str
    seconds: float
    devices: tuple[str, ...] = ()  # what other machines found, a line each
    latency: tuple[str, ...] = ()  # of a run with a budget in latency, a line each
    data: tuple[str, ...] = ()  # what makes the figures doubtful, a line each
    variants: tuple[VariantRow, ...] = ()  # where there are others than fp32

    @property
    def decision(self) -> str:
        """Whether the model may be used, for who reads nothing else."""
        failed = [verdict.name for verdict in self.verdicts if verdict.outcome == "fail"]
        unclear = [verdict.name for verdict in self.verdicts if verdict.outcome == "inconclusive"]
        if failed:
            return f"REJECTED, do not use: failed {', '.join(failed)}"
        return f"not accepted yet, undecided: {', '.join(unclear)}" if unclear else "accepted: every gate passed"

    def notes(self) -> tuple[str, ...]:
        """The lines below the table."""
        return tuple(map(printable, (*(f"variant {v.sentence()}" for v in self.variants), *self._facts())))

    def _facts(self) -> tuple[str, ...]:
        return (
            f"target  {self.targets}; FLOPs: 2 x multiply-accumulates of conv and linear layers",
            f"model   {self.model}   (after {duration(self.seconds)})",
            *(f"latency {line}" for line in self.latency),
            *(f"device  {line}" for line in self.devices),
            *(f"data    {line}" for line in self.data),
        )

    def as_text(self) -> str:
        """Aligned columns in plain characters."""
        rows = [("", "dense", "shrunk", "shrunk / dense"), *((r.name, r.dense, r.shrunk, r.ratio) for r in self.rows)]
        gates = [("gate", "verdict", ""), *((v.name, v.outcome, v.detail) for v in self.verdicts)]
        tables = aligned(rows), "", aligned(gates, ("left", "left", "left"))
        return "\n".join([printable(self.title), self.cost, "", *tables, "", *self.notes()])

    def as_markdown(self) -> str:
        lines = [
            f"# {in_markdown(self.title)}",
            "",
            f"**{self.decision}**",
            "",
            f"**{self.cost}**",
            "",
            "| | dense | shrunk | shrunk / dense |",
            "|-|-:|-:|-:|",
        ]
        lines += [f"| {row.name} | {row.dense} | {row.shrunk} | {row.ratio} |" for row in self.rows]
        lines += ["", "| gate | verdict | |", "|-|-|-|"]
        lines += [f"| {v.name} | {v.outcome} | {in_markdown(v.detail)} |" for v in self.verdicts]
        if self.variants:
            lines += ["", "| variant | | latency | / fp32 | top-1 | file | |", "|-|-|-:|-:|-:|-:|-|"]
        for v in self.variants:
            reason = in_markdown(v.reason or "")
            lines.append(f"| {v.name} | {v.outcome} | {v.latency} | {v.ratio} | {v.top1} | {v.size} | {reason} |")
        return "\n".join([*lines, "", *(f"{in_markdown(fact)}  " for fact in self._facts()), ""])


def summarise(
    title: str,
    metrics: Mapping[str, float],
    gates: Sequence[Mapping[str, Any]],
    targets: Mapping[str, Target],
    model: str,
    seconds: float,
) -> Summary:
    """The summary of a run's flat metrics; what was not measured has no row."""
    rows = [
        _pair(metrics, "FLOPs per image", "flops.dense", "flops.shrunk", scaled),
        _pair(metrics, "parameters", "params.dense", "params.shrunk", scaled),
        _pair(metrics, "ONNX file", "size.dense_bytes", "size.shrunk_bytes", lambda value: f"{scaled(value)}B"),
        _latency(metrics),
        _accuracy(metrics),
        _pair(metrics, "training time", "time.dense_epochs_s", "time.epochs_s", duration),
    ]
    verdicts = tuple(_verdict(gate) for gate in gates)
    dense = {cost: metrics[f"{cost}.dense"] for cost in targets if f"{cost}.dense" in metrics}
    read = both_readings(targets, dense)
    return Summary(title, tuple(row for row in rows if row), verdicts, accuracy_cost(metrics), read, model, seconds)


def accuracy_cost(metrics: Mapping[str, float]) -> str:
    """What pruning cost in accuracy, with its interval, where a dense network of the same recipe tells it."""
    if "accuracy.drop" not in metrics:
        return "cost in accuracy unknown: --baseline"
    drop, low, high = (100 * metrics[f"accuracy.drop{end}"] for end in ("", "_low", "_high"))
    return f"cost in accuracy: {drop:.2f} points of top-1 (95 % interval {low:.2f} to {high:.2f})"


def _verdict(gate: Mapping[str, Any]) -> Verdict:
    measured = "not measured" if gate["value"] is None else f"{gate['value']:.3g}"
    interval = f" [{gate['low']:.3g}, {gate['high']:.3g}]" if "low" in gate else ""
    because = f"; {gate['inconclusive_because']}" if "inconclusive_because" in gate else ""
    return Verdict(gate_title(gate["name"]), gate["outcome"], f"{measured}{interval}, {gate['limit']}{because}")


def gate_title(name: str) -> str:
    """The words for a gate, as the closing table has them."""
    return {**GATES, **CHOSEN_GATES}.get(name, name)


def both_readings(targets: Mapping[str, Target], dense: Mapping[str, float] | None = None) -> str:
    """Targets by cost, each read both ways; an amount only where the `dense` costs are known."""
    return "; ".join(
        _both_readings(target, COST_NAMES[cost], (dense or {}).get(cost)) for cost, target in targets.items()
    )


def _both_readings(target: Target, cost: str, dense: float | None) -> str:
    if target.is_fraction:
        kept, what = 100 * target.value, f"{target.written} of the dense {cost}"
    elif dense is None:
        return f"keep at most {target.written} {cost}"
    else:
        kept, what = 100 * target.value / dense, f"{target.written} of the dense {scaled(dense)} {cost}"
    return f"{what}: keep at most {kept:.3g} %, prune {100 - kept:.3g} %"


def _pair(
    metrics: Mapping[str, float], name: str, dense: str, shrunk: str, shown: Callable[[float], str]
) -> Row | None:
    if dense not in metrics or shrunk not in metrics:
        return None
    return Row(name, shown(metrics[dense]), shown(metrics[shrunk]), f"{metrics[shrunk] / metrics[dense]:.3f}")


def latency_facts(metrics: Mapping[str, float]) -> tuple[str, ...]:
    """What the fit expected beside what was measured, and how much accuracy there is for the time."""
    facts = []
    measured = metrics.get("latency.shrunk_p50_ms")
    if measured is not None and "latency.predicted_ratio" in metrics and "latency.ratio" in metrics:
        predicted, ratio = metrics["latency.predicted_ratio"], metrics["latency.ratio"]
        facts.append(
            f"predicted {predicted:.3f} of the dense latency, measured {ratio:.3f}: off by "
            f"{100 * (predicted / ratio - 1):+.1f} %"
        )
    if measured is not None and "accuracy.onnx" in metrics:
        line = f"{100 * metrics['accuracy.onnx'] / measured:.3g} points of top-1 per ms"
        dense, dense_ms = metrics.get("accuracy.dense"), metrics.get("latency.dense_p50_ms")
        facts.append(f"{line}, dense {100 * dense / dense_ms:.3g}" if dense is not None and dense_ms else line)
    return tuple(facts)


def _latency(metrics: Mapping[str, float]) -> Row | None:
    row = _pair(metrics, "latency (p50, 1 image)", "latency.dense_p50_ms", "latency.shrunk_p50_ms", milliseconds)
    if row is None or "latency.ratio" not in metrics:
        return row
    low, high = metrics["latency.ratio_low"], metrics["latency.ratio_high"]
    return replace(row, ratio=f"{metrics['latency.ratio']:.3f} [{low:.3f}, {high:.3f}]")


def _accuracy(metrics: Mapping[str, float]) -> Row | None:
    """The dense column stays empty unless a dense network was trained."""
    if "accuracy.onnx" not in metrics:
        return None
    pruned = metrics["accuracy.onnx"]
    if "accuracy.dense" not in metrics:
        return Row("accuracy (top-1)", "", f"{pruned:.4f}", "")
    dense = metrics["accuracy.dense"]
    return Row("accuracy (top-1)", f"{dense:.4f}", f"{pruned:.4f}", f"{100 * (pruned - dense):+.2f} points")
