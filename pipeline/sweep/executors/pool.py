"""The executor of this machine: so many trials at a time, each with its share of the cores and a GPU of its own."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from atopipe.pipeline.rundir.lock import is_held
from atopipe.pipeline.sweep.executors.interface import ATTEMPTS, FINE, Ended, Started, Tell, Trial, not_started
from atopipe.pipeline.system.errors import Interrupted
from atopipe.pipeline.system.signals import StopRequest, ending, handled_by

POLL_S = 0.1
PATIENCE_S = 60.0  # with a process that an earlier sweep has left in the directory of a trial
LAST_CHECKPOINT_S = 120.0  # that a trial has to keep a checkpoint when it is asked to end
INTERRUPTED = 130


@dataclass(frozen=True)
class Slot:
    """What one trial may use: `cores` by their numbers, and a GPU by its name, if there is one."""

    cores: tuple[int, ...]
    gpu: str | None = None


def slots_of(jobs: int, cores: Sequence[int], gpus: Sequence[str]) -> list[Slot]:
    """The cores divided among so many trials, and the GPUs dealt out; more trials than cores share them."""
    parts = [tuple(cores[number::jobs]) or (cores[number % len(cores)],) for number in range(jobs)]
    return [Slot(part, gpus[number % len(gpus)] if gpus else None) for number, part in enumerate(parts)]


@dataclass
class _Running:
    process: subprocess.Popen[bytes]
    slot: Slot


class LocalPool:
    """Runs trials in processes of this machine, as many at a time as there are `slots`."""

    def __init__(self, slots: Sequence[Slot]) -> None:
        self.free, self.running = list(slots), dict[Trial, _Running]()
        self.attempts, self.codes, self.found_held = dict[Trial, int](), dict[str, int](), dict[Trial, float]()

    def run(self, trials: Sequence[Trial], tell: Tell) -> None:
        """As `Executor` has it. A trial that was killed is started again, `ATTEMPTS` times in all."""
        waiting, stop = list(trials), StopRequest()
        with handled_by(stop.make, *ending()), self._cleared():
            while waiting or self.running:
                if stop.made:
                    self._end()
                    raise Interrupted(
                        "interrupted: every run has kept a checkpoint, run the same command again to resume"
                    )
                self._start_some(waiting, tell)
                waiting += self._reap(tell)
                time.sleep(POLL_S)

    def _start_some(self, waiting: list[Trial], tell: Tell) -> None:
        """Starts what may be started; a trial waits for the process of an earlier sweep to let go."""
        expected = {trial.name for trial in (*waiting, *self.running)}
        for trial in list(waiting):
            if trial.after in self.codes and self.codes[trial.after] not in FINE:
                waiting.remove(trial)
                self._ended(not_started(trial), tell)
            elif self.free and trial.after not in expected and self._may_enter(trial):
                waiting.remove(trial)
                self._start(trial, tell)

    def _may_enter(self, trial: Trial) -> bool:
        """Whether the trial's directory is free, or has not become so for long: then the trial says who is there."""
        first = self.found_held.setdefault(trial, time.monotonic())
        return not is_held(trial.directory) or time.monotonic() - first > PATIENCE_S

    def _start(self, trial: Trial, tell: Tell) -> None:
        slot = self.free.pop(0)
        self.attempts[trial] = self.attempts.get(trial, 0) + 1
        trial.log.parent.mkdir(parents=True, exist_ok=True)
        bound = (
            sys.executable,
            "-P",
            "-m",
            "atopipe.pipeline.sweep.executors.with_parent",
            str(os.getpid()),
            *trial.command,
        )
        with trial.log.open("ab") as log, on_cores(slot.cores):
            process = subprocess.Popen(
                bound, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment(slot), start_new_session=True
            )
        self.running[trial] = _Running(process, slot)
        tell(Started(trial, self.attempts[trial]))

    def _reap(self, tell: Tell) -> list[Trial]:
        """Takes note of the trials that are over; those that were killed are to be started again."""
        again = []
        for trial, running in list(self.running.items()):
            code = running.process.poll()
            if code is None:
                continue
            self._let_go(trial)
            if was_killed(code) and self.attempts[trial] < ATTEMPTS:
                again.append(trial)
            else:
                self._ended(Ended(trial, code, "" if code in FINE else reason_of(code)), tell)
        return again

    def _ended(self, ended: Ended, tell: Tell) -> None:
        self.codes[ended.trial.name] = ended.code
        tell(ended)

    def _end(self) -> None:
        """Asks all trials to end, and waits until they have."""
        for running in self.running.values():
            running.process.terminate()
        end = time.monotonic() + LAST_CHECKPOINT_S
        while self.running and time.monotonic() < end:
            for trial, running in list(self.running.items()):
                if running.process.poll() is not None:
                    self._let_go(trial)
            time.sleep(POLL_S)

    @contextmanager
    def _cleared(self) -> Iterator[None]:
        """At the end, whatever happened, no trial is running."""
        try:
            yield
        finally:
            for trial in list(self.running):
                self.running[trial].process.kill()
                self._let_go(trial)

    def _let_go(self, trial: Trial) -> None:
        """Ends what a trial left behind, and frees its slot."""
        running = self.running.pop(trial)
        if hasattr(os, "killpg"):
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(running.process.pid, signal.SIGKILL)
        running.process.wait()
        self.free.append(running.slot)


def was_killed(code: int) -> bool:
    """Whether a process was ended from outside: by a signal, or by being asked to."""
    return code < 0 or code in (INTERRUPTED, 128 + signal.SIGTERM)


def reason_of(code: int) -> str:
    """Why a trial is not complete, in words."""
    return f"killed {ATTEMPTS} times" if was_killed(code) else f"exit code {code}"


def environment(slot: Slot) -> Mapping[str, str]:
    """That of a trial: its settings are in its directory, so that no variable changes them; it sees its own GPU."""
    mine = {name: value for name, value in os.environ.items() if not name.startswith("ATOPIPE_")}
    return mine if slot.gpu is None else {**mine, "CUDA_VISIBLE_DEVICES": slot.gpu}


@contextmanager
def on_cores(cores: Sequence[int]) -> Iterator[None]:
    """While active, what this thread starts runs on these cores; on systems that know no affinity, on all."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
