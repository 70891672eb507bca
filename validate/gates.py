"""Gates: what a delivered model must reach, as data, and the three answers a measurement can give."""

import math
from dataclasses import dataclass
from enum import Enum


class Outcome(Enum):
    """`INCONCLUSIVE` is no weaker kind of pass: the measurement could not tell."""

    PASS = "pass"  # noqa: S105 - the word, not a password
    FAIL = "fail"
    INCONCLUSIVE = "inconclusive"


class Bound(Enum):
    """On which side of the limit the value must be; being equal to it is enough."""

    AT_MOST = "at most"
    AT_LEAST = "at least"


@dataclass(frozen=True)
class Gate:
    """A measured value and its limit.

    Attributes:
        name: the metric, such as `flops.ratio`.
        value: what was measured; None if it could not be.
        limit: what is allowed.
        bound: the side of the limit to be on.
        interval: the ends of the value's confidence interval, where it has one; then its worse end is judged.
        inconclusive_because: why nothing can be concluded from the measurement, as a clause; None where something can.
    """

    name: str
    value: float | None
    limit: float
    bound: Bound = Bound.AT_MOST
    interval: tuple[float, float] | None = None
    inconclusive_because: str | None = None


@dataclass(frozen=True)
class Verdict:
    """The outcome of one gate and the reason in words."""

    gate: Gate
    outcome: Outcome
    reason: str


def judge(gate: Gate) -> Verdict:
    """Pass if the whole interval is on the right side of the limit, fail if none of it is, else inconclusive.

    A value without an interval counts as an interval of that one number. A value that is not a number fails.
    """
    if gate.value is None:
        return Verdict(gate, Outcome.INCONCLUSIVE, f"{gate.name} was not measured")
    low, high = gate.interval or (gate.value, gate.value)
    if math.isnan(gate.value) or math.isnan(low) or math.isnan(high):
        return Verdict(gate, Outcome.FAIL, f"{gate.name} is not a number")
    if gate.inconclusive_because is not None:
        reason = f"{gate.name} = {gate.value:.6g} is inconclusive: {gate.inconclusive_because}"
        return Verdict(gate, Outcome.INCONCLUSIVE, reason)
    holds = [end <= gate.limit if gate.bound is Bound.AT_MOST else end >= gate.limit for end in (low, high)]
    outcome = Outcome.PASS if all(holds) else Outcome.INCONCLUSIVE if any(holds) else Outcome.FAIL
    return Verdict(gate, outcome, _reason(gate, outcome))


def _reason(gate: Gate, outcome: Outcome) -> str:
    interval = f" (between {gate.interval[0]:.6g} and {gate.interval[1]:.6g})" if gate.interval else ""
    relation = {
        Outcome.PASS: f"is {gate.bound.value} {gate.limit:.6g}",
        Outcome.FAIL: f"is not {gate.bound.value} {gate.limit:.6g}",
        Outcome.INCONCLUSIVE: f"may or may not be {gate.bound.value} {gate.limit:.6g}",
    }[outcome]
    return f"{gate.name} = {gate.value:.6g}{interval} {relation}"
