"""Where the runs of a sweep are carried out, as an interface.

A trial is `atopipe run ... --output DIR` as a process of its own, which resumes from its directory. So an executor
places trials and starts them again when they were lost; it knows nothing of what they do.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

FINE = (0, 3, 4)  # exit codes of a run that is complete: a gate that failed or cannot decide is a result
ATTEMPTS = 3  # a trial that is killed three times would be killed again


@dataclass(frozen=True)
class Trial:
    """A command that works in `directory` and says what it does in `log`; it waits for the trial `after`."""

    name: str
    command: tuple[str, ...]
    directory: Path
    log: Path
    after: str | None = None


@dataclass(frozen=True)
class Started:
    """A trial has been started, for the `attempt`-th time."""

    trial: Trial
    attempt: int


@dataclass(frozen=True)
class Ended:
    """A trial is over; `reason` says why where its exit code is not among `FINE`."""

    trial: Trial
    code: int
    reason: str = ""

    @property
    def is_fine(self) -> bool:
        """Whether its run is complete."""
        return self.code in FINE


Tell = Callable[[Started | Ended], None]


class Executor(Protocol):
    """Carries trials out, wherever that is."""

    def run(self, trials: Sequence[Trial], tell: Tell) -> None:
        """Runs every trial after the one it waits for, and tells of each; one that fails does not stop the others.

        Raises Interrupted when the process was asked to end; then no trial is running any more.
        """
        ...


def not_started(trial: Trial) -> Ended:
    """What becomes of a trial whose predecessor failed."""
    return Ended(trial, 1, f"not started, because '{trial.after}' failed")
