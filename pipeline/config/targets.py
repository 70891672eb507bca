"""Targets as people say them: a fraction of the dense network, or an amount in the cost's own unit."""

import math
import re
from dataclasses import dataclass, field

MILLISECONDS = {"us": 1e-3, "ms": 1.0, "s": 1e3}
DURATION = re.compile(r"(?P<number>\d+(?:\.\d*)?|\.\d+)\s*(?P<unit>us|ms|s)", re.IGNORECASE)
UNITS = {"K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}
SMALLEST_AMOUNT = 1000  # below it, 30 was meant to be 30 %
WRITTEN = re.compile(r"(?P<number>\d+(?:\.\d*)?|\.\d+)(?:e(?P<power>[+-]?\d+))?\s*(?P<unit>[%KMGT]?)", re.IGNORECASE)


@dataclass(frozen=True)
class Target:
    """At most `value` of a cost may be kept: a fraction of the dense network's (`is_fraction`), else an amount.

    `written`: as a person says it; equal values are equal targets.
    """

    value: float
    is_fraction: bool
    written: str = field(compare=False)

    @staticmethod
    def parse(given: object) -> "Target":
        """`0.3`, `30%` (a fraction above 0 and at most 1); `1.2G`, `300M`, `4000000` (an amount).

        Raises ValueError for anything else.
        """
        if isinstance(given, Target):
            return given
        found = WRITTEN.fullmatch(str(given).strip()) if isinstance(given, int | float | str) else None
        if found is None or isinstance(given, bool):
            raise ValueError("it is neither a fraction nor an amount")
        number, unit = float(f"{found['number']}e{found['power'] or 0}"), found["unit"].upper()
        if unit == "%":
            number /= 100
        value = number * UNITS.get(unit, 1.0)
        if not math.isfinite(value) or value <= 0 or (unit == "%" and value > 1):
            raise ValueError("it is out of range")
        if unit in UNITS or (value >= SMALLEST_AMOUNT and unit == ""):
            return Target(value, is_fraction=False, written=str(given).strip().upper())
        if value > 1:
            raise ValueError("it is neither a fraction nor an amount")
        return Target(value, is_fraction=True, written=f"{value:g}")

    @staticmethod
    def parse_latency(given: object) -> "Target":
        """`0.4`, `40%` (a fraction above 0 and at most 1); `8ms`, `0.5s`, `900us` (an amount, in milliseconds).

        Raises ValueError for anything else, a number above 1 without a unit included.
        """
        found = DURATION.fullmatch(given.strip()) if isinstance(given, str) else None
        if found is None:
            target = Target.parse(given)
            if not target.is_fraction:
                raise ValueError("it has no unit of time")
            return target
        value = float(found["number"]) * MILLISECONDS[found["unit"].lower()]
        if not 0 < value < math.inf:
            raise ValueError("it is out of range")
        return Target(value, is_fraction=False, written=f"{value:g}ms")

    def plain(self) -> float | str:
        """What a file of settings holds; `parse` reads it back."""
        return self.value if self.is_fraction else self.written

    def limit(self, dense: float) -> float:
        """The largest cost that is allowed, where the dense network costs `dense`."""
        return self.value * dense if self.is_fraction else self.value
