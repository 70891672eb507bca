"""What the gates of a run say, and the error that it means for a command."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from atopipe.pipeline.report.devices import decided
from atopipe.pipeline.rundir.directory import RunDirectory
from atopipe.pipeline.system.errors import AtopipeError, GateFailed, Inconclusive, ParityGateFailed

PARITY_GATES = ("parity.max_rel_diff", "parity.float64_rel_diff", "parity.rounding_ratio")
EQUIVALENCE_GATES = ("lossless.max_rel_diff", *PARITY_GATES)


@dataclass(frozen=True)
class GateVerdict:
    """One gate of a run: `outcome` is pass, fail or inconclusive, and `reason` says why in words."""

    name: str
    outcome: str
    reason: str
    value: float | None = None
    limit: str = ""


def gates_of(run: RunDirectory) -> list[dict[str, Any]]:
    """The gates that stage validate judged, those that another device decides included."""
    text = run.stages.artifact("validate", "gates.json").read_text(encoding="utf-8")
    return decided(run, json.loads(text))


def verdicts_of(run: RunDirectory) -> tuple[GateVerdict, ...]:
    """Those of stage validate, which must be complete, and of devices."""
    gates = gates_of(run)
    return tuple(GateVerdict(g["name"], g["outcome"], g["reason"], g.get("value"), g.get("limit", "")) for g in gates)


def equivalence_failure(verdicts: Sequence[GateVerdict]) -> ParityGateFailed | None:
    """The error that means that the delivered model was found not to be the trained one; None where it was not."""
    broken = [v.reason for v in verdicts if v.outcome == "fail" and v.name in EQUIVALENCE_GATES]
    return ParityGateFailed(f"the delivered model is not the trained one: {'; '.join(broken)}") if broken else None


def failure(verdicts: Sequence[GateVerdict], root: Path) -> AtopipeError | None:
    """The error that the gates of the run in `root` mean, None where all pass; equivalence outweighs the rest."""
    failed = [verdict.reason for verdict in verdicts if verdict.outcome == "fail"]
    unclear = [verdict for verdict in verdicts if verdict.outcome == "inconclusive"]
    if error := equivalence_failure(verdicts):
        return error
    if failed:
        return GateFailed(f"gate failed: {'; '.join(failed)}")
    if unclear:
        reasons = "; ".join(verdict.reason for verdict in unclear)
        return Inconclusive(f"inconclusive: {reasons}: {_remedy(unclear, root)}")
    return None


def _remedy(unclear: Sequence[GateVerdict], root: Path) -> str:
    """The interval of the accuracy is the same each time the same images are measured; that of the latency is not."""
    if all(verdict.name.startswith("accuracy.") for verdict in unclear):
        return "more validation images would narrow the interval"
    return f"measure again with 'atopipe validate {root} --force'"
