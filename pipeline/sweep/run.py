"""Carries a sweep out in its directory, and writes what came out; the same call again resumes it."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel

from atopipe.pipeline.rundir.directory import RunDirectory
from atopipe.pipeline.rundir.lock import LOCK_FILES, locked
from atopipe.pipeline.sweep.curve import Curve, curve_of
from atopipe.pipeline.sweep.executors.interface import Ended, Executor, Started
from atopipe.pipeline.sweep.plan import Member
from atopipe.pipeline.sweep.progress import is_complete, metrics_of
from atopipe.pipeline.sweep.reach import require_reachable
from atopipe.pipeline.sweep.report import write_report
from atopipe.pipeline.sweep.trials import SweepDirectory
from atopipe.pipeline.system.errors import UsageError
from atopipe.pipeline.system.files import DamagedError, read_sealed, write_sealed
from atopipe.pipeline.tracking.mirror import parent_tracked

PLAN = "plan.json"
REPORTS = ("sweep.html", "sweep.json", "sweep.csv")


class Plan(BaseModel):
    """plan.json: what the page is called, and the values that each run was made with."""

    title: str
    runs: dict[str, dict[str, str]]


@dataclass(frozen=True)
class Result:
    """What a sweep came to: its curve, and why runs are missing, by trial."""

    curve: Curve
    failures: Mapping[str, str]


def sweep(
    members: Sequence[Member],
    root: Path,
    executor: Executor,
    *,
    title: str,
    trackers: Sequence[str] = (),
    say: Callable[[str], None] = lambda line: None,
) -> Result:
    """Runs what is not complete of the `members` in `root`, each mirrored in these `trackers`, and reports.

    `root` is new, or holds the same runs or some of them. Raises UsageError for anything else, and for targets that
    cannot be reached; MissingError where another sweep works there; Interrupted.
    """
    directory = SweepDirectory(root)
    _require_same(members, directory)
    with locked(root) as note:
        if note:
            say(note)
        if not (root / PLAN).exists() or read_plan(root).runs.keys() != {member.name for member in members}:
            require_reachable(members)
        write_sealed(root / PLAN, Plan(title=title, runs={m.name: dict(m.chosen) for m in members}).model_dump())
        directory.make_runs(members)
        failures: dict[str, str] = {}

        def tell(happened: Started | Ended) -> None:
            if isinstance(happened, Ended) and not happened.is_fine:
                failures[happened.trial.name] = f"{happened.reason}, see '{happened.trial.log}'"
            say(_line(happened))

        axes = {axis: ", ".join(dict.fromkeys(m.chosen[axis] for m in members)) for axis in members[0].chosen}
        with parent_tracked(root, trackers, axes, REPORTS, say):
            executor.run(list(directory.trials(members, [f"--{name}" for name in trackers])), tell)
            return Result(report(root), failures)


def report(root: Path) -> Curve:
    """Writes sweep.html, sweep.json and sweep.csv of what is complete."""
    plan = read_plan(root)
    curve = curve_of(SweepDirectory(root), plan.runs)
    write_report(root, curve, plan.title)
    return curve


def read_plan(root: Path) -> Plan:
    """The plan of the sweep in `root`; UsageError where there is none."""
    try:
        return Plan(**read_sealed(root / PLAN, Plan))
    except (OSError, DamagedError):
        raise UsageError(f"'{root}' is not a sweep of atopipe: give the folder that 'atopipe sweep' wrote") from None


def _require_same(members: Sequence[Member], sweep: SweepDirectory) -> None:
    """UsageError where the directory holds something else than these runs, or some of them."""
    root, other = sweep.root, "choose another --output"
    if root.exists() and not root.is_dir():
        raise UsageError(f"output '{root}' is a file: {other}")
    if not (root / PLAN).exists():
        if root.exists() and any(entry.name not in LOCK_FILES for entry in root.iterdir()):
            raise UsageError(f"output '{root}' is not empty and not a sweep of atopipe: {other}")
        return
    names = {member.name for member in members}
    if gone := [name for name in read_plan(root).runs if name not in names]:
        raise UsageError(f"output '{root}' is a sweep with the run '{gone[0]}', which is not among these: {other}")
    for member in members:
        run = sweep.run(member.name)
        if run.exists() and RunDirectory.holds_another(run, member.config):
            raise UsageError(
                f"output '{root}' is a sweep of another plan: its run '{member.name}' has other settings: {other}"
            )


def _line(happened: Started | Ended) -> str:
    """What a terminal shows of a trial."""
    trial = happened.trial
    if isinstance(happened, Started):
        return f"{trial.name:<20} started" + (f" again, {happened.attempt}. time" if happened.attempt > 1 else "")
    if not happened.is_fine:
        return f"{trial.name:<20} failed: {happened.reason}"
    top1 = metrics_of(trial.directory).get("accuracy.onnx") if is_complete(trial.directory) else None
    return f"{trial.name:<20} complete" + (f", top-1 {top1:.4f}" if top1 is not None else "")


def chosen_bundle(root: Path, name: str) -> Path:
    """The bundle of a run; UsageError where the run has none."""
    bundle = SweepDirectory(root).run(name) / "bundle"
    if not bundle.is_dir():
        raise UsageError(f"run '{name}' of '{root}' has no bundle: run 'atopipe bundle {bundle.parent}'")
    return bundle


def sweep_json(root: Path) -> str:
    """The content of sweep.json as it is now."""
    return json.dumps(report(root).as_dict(), indent=2)
