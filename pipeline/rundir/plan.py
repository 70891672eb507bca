"""What a run would do and why: which stages are current, and what has changed under those that are not."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from atopipe.pipeline.rundir.directory import RunDirectory
from atopipe.pipeline.rundir.layout import StageSpec

SHA256_DIGITS = 64
KINDS: Mapping[str, str] = {"settings": "{}", "outside": "{}", "inputs": "the output of stage {}", "libraries": "{}"}


@dataclass(frozen=True)
class Step:
    """One stage: whether it would run, and why; a reason that begins with "if" is decided when its time has come."""

    stage: str
    runs: bool
    reasons: tuple[str, ...]

    def as_text(self) -> str:
        """One line."""
        return f"{self.stage:<8} {'runs' if self.runs else 'is skipped'}: {'; '.join(self.reasons)}"


def plan(chosen: Sequence[StageSpec], run: RunDirectory, forced: Collection[str]) -> list[Step]:
    """A step for each of the `chosen` stages in their order; the `forced` ones run in any case."""
    steps: list[Step] = []
    for stage in chosen:
        before = [step.stage for step in steps if step.runs and step.stage in stage.inputs]
        asked = ["requested"] if stage.name in forced else []
        reasons = asked or changes(stage, run) or [f"if the output of {name} changes" for name in before[:1]]
        steps.append(Step(stage.name, bool(reasons), tuple(reasons) or ("unchanged",)))
    return steps


def changes(stage: StageSpec, run: RunDirectory) -> list[str]:
    """Why `stage` is not current, one reason for each thing that has changed; none where it is."""
    result = run.stages.result(stage.name)
    if result is None:
        return ["not complete yet"]
    return list(_differences(run.stages.made_from(result, stage), run.stages.depends(stage)))


def _differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    for kind, phrase in KINDS.items():
        for name, old, new in _leaves(then.get(kind, {}), now.get(kind, {})):
            said = "has changed" if _is_digest(old) or _is_digest(new) else f"was {_shown(old)}, is {_shown(new)}"
            yield f"{phrase.format(name)} {said}"


def _leaves(then: Mapping[str, Any], now: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Dotted name, value then and value now of everything that differs; None where there was or is nothing."""
    for name in [*now, *(name for name in then if name not in now)]:
        old, new = then.get(name), now.get(name)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            yield from _leaves(old, new, f"{path}{name}.")
        elif old != new:
            yield f"{path}{name}", old, new


def _is_digest(value: object) -> bool:
    return isinstance(value, str) and len(value) == SHA256_DIGITS and set(value) <= set("0123456789abcdef")


def _shown(value: object) -> str:
    return "not there" if value is None else str(value)
