"""The executor for Ray Core, in a local cluster or at an address: a task for each trial.

Ray places the tasks by cores and GPUs and starts those again whose worker or node was lost; the trial resumes from its
directory, which every node has to see. Ray kills only a worker's direct children, and none when it is killed itself, so
a trial has a session of its own that is ended with it, and is asked to end when its worker dies.
"""

import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from atopipe.pipeline.rundir.lock import is_held
from atopipe.pipeline.sweep.executors.interface import ATTEMPTS, FINE, Ended, Started, Tell, Trial, not_started
from atopipe.pipeline.sweep.executors.pool import LAST_CHECKPOINT_S, PATIENCE_S, reason_of, was_killed
from atopipe.pipeline.system.errors import Interrupted, MissingError, UsageError
from atopipe.pipeline.system.signals import StopRequest, ending, handled_by
from atopipe.pipeline.system.text import first_line

POLL_S = 0.5
CONNECTION_S = 10.0


class RayCluster:
    """Runs trials in the cluster at `address` (None: a new one on this machine), so many `jobs` at a time.

    `wants_gpu`: a GPU for each trial, where the cluster has any.
    """

    def __init__(self, address: str | None, jobs: int | None, *, wants_gpu: bool) -> None:
        self.ray, self.jobs, self.wants_gpu = _connected(address), jobs, wants_gpu
        self.codes: dict[str, int] = {}

    def run(self, trials: Sequence[Trial], tell: Tell) -> None:
        """As `Executor` has it."""
        waiting, running, stop = list(trials), dict[Any, Trial](), StopRequest()
        start = self._task()
        try:
            with handled_by(stop.make, *ending()):
                while waiting or running:
                    if stop.made:
                        raise Interrupted(
                            "interrupted: every run has kept a checkpoint, run the same command again to resume"
                        )
                    self._start_some(waiting, running, start, tell)
                    ready, _ = self.ray.wait(list(running), timeout=POLL_S) if running else ([], [])
                    for task in ready:
                        self._ended(self._result(task, running.pop(task)), tell)
        finally:
            self._end(list(running))

    def _task(self) -> Callable[[Trial], Any]:
        """What starts a trial: a task with its share of the cluster."""
        have = self.ray.cluster_resources()
        gpus = 1 if self.wants_gpu and have.get("GPU", 0) >= 1 else 0
        cores = max(1, int(have.get("CPU", 1) / self.jobs)) if self.jobs else 1
        task = self.ray.remote(num_cpus=cores, num_gpus=gpus, max_retries=ATTEMPTS - 1)(carry_out)
        where, path = str(Path.cwd()), os.environ.get("PYTHONPATH", "")
        return lambda trial: task.remote(trial.command, str(trial.directory), str(trial.log), where, path, cores)

    def _start_some(
        self, waiting: list[Trial], running: dict[Any, Trial], start: Callable[[Trial], Any], tell: Tell
    ) -> None:
        expected = {trial.name for trial in (*waiting, *running.values())}
        for trial in list(waiting):
            if self.codes.get(trial.after or "", 0) not in FINE:
                waiting.remove(trial)
                self._ended(not_started(trial), tell)
            elif trial.after not in expected and (self.jobs is None or len(running) < self.jobs):
                waiting.remove(trial)
                trial.log.parent.mkdir(parents=True, exist_ok=True)
                running[start(trial)] = trial
                tell(Started(trial, 1))

    def _result(self, task: Any, trial: Trial) -> Ended:
        try:
            code = int(self.ray.get(task))
        except self.ray.exceptions.RayError as error:
            return Ended(trial, 1, f"Ray gave it up ({first_line(error)})")
        return Ended(trial, code, "" if code in FINE else reason_of(code))

    def _ended(self, ended: Ended, tell: Tell) -> None:
        self.codes[ended.trial.name] = ended.code
        tell(ended)

    def _end(self, tasks: Sequence[Any]) -> None:
        """Asks what is running to end, waits for its checkpoints, and leaves the cluster."""
        for task in tasks:
            self.ray.cancel(task)
        if tasks:
            self.ray.wait(list(tasks), num_returns=len(tasks), timeout=LAST_CHECKPOINT_S)
        self.ray.shutdown()


def _connected(address: str | None) -> Any:
    """Ray, connected; MissingError, with the remedy, where it is not installed or nobody answers."""
    try:
        import ray
    except ImportError:
        raise MissingError("--executor ray needs the package 'ray': pip install 'atopipe[ray]'") from None
    if address is not None:
        _require_answer(address)
    local: Mapping[str, Any] = {} if address else {"include_dashboard": False}
    try:
        ray.init(address=address or "local", log_to_driver=False, logging_level=logging.ERROR, **local)
    except (ConnectionError, RuntimeError, ValueError, TimeoutError, ray.exceptions.RayError) as error:
        raise MissingError(f"Ray cannot be used ({first_line(error)}): see 'ray status' on its head") from None
    return ray


def _require_answer(address: str) -> None:
    """UsageError for what is no address, MissingError where nobody answers: Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        raise UsageError(f"--address is '{address}', but must be HOST:PORT, as 'ray start --head' shows it")
    try:
        socket.create_connection((host, int(port)), CONNECTION_S).close()
    except (OSError, OverflowError) as error:
        who = f"no Ray cluster answers at '{address}' ({error})"
        raise MissingError(f"{who}: start one with 'ray start --head'") from None


def carry_out(command: Sequence[str], directory: str, log: str, folder: str, path: str, cores: int) -> int:
    """In a worker: the command's exit code; it is done again if it was killed, and nothing it started is left."""
    with suppress(ValueError):  # outside the main thread
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # a worker may have it ignored, and would never learn the code
    code = 1
    for _ in range(ATTEMPTS):
        _wait_until_free(Path(folder, directory))
        code = _once(command, str(Path(folder, log)), folder, _environment(path, cores))
        if not was_killed(code):
            break
    return code


def _wait_until_free(directory: Path) -> None:
    """Until the process of a worker that was lost has let go of the run, or has not for long."""
    end = time.monotonic() + PATIENCE_S
    while is_held(directory) and time.monotonic() < end:
        time.sleep(POLL_S)


def _once(command: Sequence[str], log: str, folder: str, environment: Mapping[str, str]) -> int:
    bound = [sys.executable, "-P", "-m", "atopipe.pipeline.sweep.executors.with_parent", str(os.getpid()), *command]
    with Path(log).open("ab") as out:
        process = subprocess.Popen(
            bound, cwd=folder, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=environment, start_new_session=True
        )
    try:
        while process.poll() is None:  # Ray's way to cancel a task does not interrupt a call that waits
            time.sleep(POLL_S)
        return process.returncode
    except BaseException:  # cancelled
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(LAST_CHECKPOINT_S)
        raise
    finally:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _environment(path: str, cores: int) -> dict[str, str]:
    """The worker's, without settings of a run but the number of threads, which Ray does not enforce."""
    mine = {name: value for name, value in os.environ.items() if not name.startswith("ATOPIPE_")}
    return {**mine, **({"PYTHONPATH": path} if path else {}), "ATOPIPE_THREADS": str(cores)}
