"""Whether training has become slow because other programs use the processors that its threads wait for."""

import time
from collections.abc import Callable
from dataclasses import dataclass

SLOWER = 3.0  # times the fastest steps of the same phase
WAITING = 0.7  # of the share of processor time that the fastest steps had
IN_A_ROW = 3  # reports: one slow one may be a validation or a checkpoint


@dataclass(frozen=True)
class Pace:
    """Wall seconds per step, and processor seconds per wall second."""

    step_s: float
    busy: float

    def is_waiting(self, fastest: "Pace") -> bool:
        """Whether steps are several times slower than the fastest ones without computing more."""
        return self.step_s >= SLOWER * fastest.step_s and self.busy <= WAITING * fastest.busy


class StepWatch:
    """Looks at the pace of training each time it is reported, and says once that threads wait for processors."""

    def __init__(
        self,
        say: Callable[[str], None],
        wall: Callable[[], float] = time.perf_counter,
        processor: Callable[[], float] = time.process_time,
    ) -> None:
        self._say, self._wall, self._processor = say, wall, processor
        self._last: tuple[str, int, float, float] | None = None
        self._fastest: dict[str, Pace] = {}
        self._slow = 0
        self._said = False

    def after(self, phase: str, step: int) -> None:
        """Takes note that training in `phase` has finished `step` steps."""
        now = (phase, step, self._wall(), self._processor())
        last, self._last = self._last, now
        if last is None or self._said or last[0] != phase or step <= last[1] or now[2] <= last[2]:
            return
        pace = Pace((now[2] - last[2]) / (step - last[1]), (now[3] - last[3]) / (now[2] - last[2]))
        fastest = self._fastest.setdefault(phase, pace)
        if pace.step_s < fastest.step_s:
            self._fastest[phase] = pace
        self._slow = self._slow + 1 if pace.is_waiting(fastest) else 0
        if self._slow == IN_A_ROW:
            self._said = True
            self._say(
                f"note    a step takes {pace.step_s / fastest.step_s:.0f} times as long as at first, because threads "
                "wait for processors that other programs use: stop this run, and resume it with --threads 1"
            )
