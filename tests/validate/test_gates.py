"""Gates have three answers, and the interval's worse end decides."""

import math

import pytest

from atopipe.validate.gates import Bound, Gate, Outcome, judge

PASS, FAIL, INCONCLUSIVE = Outcome.PASS, Outcome.FAIL, Outcome.INCONCLUSIVE


@pytest.mark.parametrize(
    ("gate", "outcome", "reason"),
    [
        (Gate("flops.ratio", 0.2984, 0.3), PASS, "flops.ratio = 0.2984 is at most 0.3"),
        (Gate("flops.ratio", 0.3, 0.3), PASS, "flops.ratio = 0.3 is at most 0.3"),
        (Gate("flops.ratio", 0.31, 0.3), FAIL, "flops.ratio = 0.31 is not at most 0.3"),
        (Gate("accuracy", 0.97, 0.96, Bound.AT_LEAST), PASS, "accuracy = 0.97 is at least 0.96"),
        (Gate("accuracy", 0.95, 0.96, Bound.AT_LEAST), FAIL, "accuracy = 0.95 is not at least 0.96"),
        (
            Gate("latency.ratio", 0.5, 0.6, interval=(0.4, 0.7)),
            INCONCLUSIVE,
            "latency.ratio = 0.5 (between 0.4 and 0.7) may or may not be at most 0.6",
        ),
        (
            Gate("accuracy", 0.97, 0.96, Bound.AT_LEAST, (0.961, 0.98)),
            PASS,
            "accuracy = 0.97 (between 0.961 and 0.98) is at least 0.96",
        ),
        (
            Gate("latency.ratio", 0.7, 0.6, interval=(0.65, 0.8)),
            FAIL,
            "latency.ratio = 0.7 (between 0.65 and 0.8) is not at most 0.6",
        ),
        (Gate("latency.ratio", None, 0.6), INCONCLUSIVE, "latency.ratio was not measured"),
        (
            Gate("speed", 2.0, 1.5, Bound.AT_LEAST, (1.9, 2.1), "the machine was busy"),
            INCONCLUSIVE,
            "speed = 2 is inconclusive: the machine was busy",
        ),
        (Gate("parity", math.nan, 1e-4), FAIL, "parity is not a number"),
        (Gate("parity", 1.0, 2.0, interval=(0.5, math.nan)), FAIL, "parity is not a number"),
    ],
)
def test_a_gate_is_judged_on_the_worse_end(gate: Gate, outcome: Outcome, reason: str) -> None:
    verdict = judge(gate)
    assert (verdict.gate, verdict.outcome, verdict.reason) == (gate, outcome, reason)
