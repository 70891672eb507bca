"""The executor of this machine: order, shares, failures, and that no process outlives it."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from atopipe.pipeline.rundir.lock import HOLDER
from atopipe.pipeline.sweep.executors.interface import Ended, Started, Trial
from atopipe.pipeline.sweep.executors.pool import LocalPool, slots_of
from atopipe.pipeline.system.errors import Interrupted
from atopipe.pipeline.system.files import write_json

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals")
NOTE = "import sys, time; print(time.monotonic(), flush=True); "


def trial(folder: Path, name: str, code: str, after: str | None = None) -> Trial:
    (folder / name).mkdir(exist_ok=True)
    return Trial(name, (sys.executable, "-c", code), folder / name, folder / f"{name}.log", after)


def run(trials: list[Trial], jobs: int = 2, then: Callable[[Started | Ended], None] = lambda told: None) -> list[str]:
    """What the pool told, in words."""
    told: list[str] = []

    def tell(happened: Started | Ended) -> None:
        what = happened.attempt if isinstance(happened, Started) else happened.reason or "fine"
        told.append(f"{happened.trial.name} {what}")
        then(happened)

    LocalPool(slots_of(jobs, sorted(os.sched_getaffinity(0)), [])).run(trials, tell)
    return told


def test_a_trial_waits_for_the_one_it_needs(tmp_path: Path) -> None:
    first = trial(tmp_path, "first", f"{NOTE} time.sleep(0.5)")
    rest = [trial(tmp_path, name, NOTE, "first") for name in ("a", "b")]
    told = run([*rest, first])
    assert told[:2] == ["first 1", "first fine"]
    assert {*told[2:]} == {"a 1", "a fine", "b 1", "b fine"}


def test_one_that_fails_stops_those_that_need_it_and_no_other(tmp_path: Path) -> None:
    first, needs = trial(tmp_path, "first", "raise SystemExit(5)"), trial(tmp_path, "needs", NOTE, "first")
    other, gate = trial(tmp_path, "other", NOTE), trial(tmp_path, "gate", "raise SystemExit(3)")
    told = run([first, needs, other, gate])
    assert {"first exit code 5", "needs not started, because 'first' failed", "other fine", "gate fine"} <= {*told}
    assert "needs 1" not in told


def test_one_that_is_killed_is_started_again_and_not_for_ever(tmp_path: Path) -> None:
    twice = f"import os, pathlib; p = pathlib.Path({str(tmp_path / 'n')!r}); n = p.exists(); p.touch();"
    once = trial(tmp_path, "once", f"{twice} n or os.kill(os.getpid(), 9)")
    always = trial(tmp_path, "always", "import os; os.kill(os.getpid(), 9)")
    told = run([once, always], jobs=1)
    assert [line for line in told if line.startswith("once")] == ["once 1", "once 2", "once fine"]
    assert told[-1] == "always killed 3 times"


def test_cores_and_gpus_are_divided() -> None:
    slots = slots_of(3, list(range(8)), ["0", "1"])
    assert sorted(core for slot in slots for core in slot.cores) == list(range(8))
    assert [slot.gpu for slot in slots] == ["0", "1", "0"]
    assert [slot.cores for slot in slots_of(3, [4, 5], [])] == [(4,), (5,), (4,)]


def test_a_trial_runs_on_its_cores_and_sees_its_gpu_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATOPIPE_EPOCHS", "99")
    seen = "os.environ['CUDA_VISIBLE_DEVICES'], 'ATOPIPE_EPOCHS' in os.environ"
    code = f"import os; print(sorted(os.sched_getaffinity(0)), {seen})"
    core = min(os.sched_getaffinity(0))
    before = os.sched_getaffinity(0)
    LocalPool(slots_of(1, [core], ["7"])).run([trial(tmp_path, "one", code)], lambda told: None)
    assert (tmp_path / "one.log").read_text().split("\n")[0] == f"[{core}] 7 False"
    assert os.sched_getaffinity(0) == before


def test_nothing_that_a_trial_started_outlives_it(tmp_path: Path) -> None:
    code = "import subprocess, sys; print(subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']).pid)"
    run([trial(tmp_path, "one", code)])
    pid = int((tmp_path / "one.log").read_text())
    end = time.monotonic() + 5
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != "zombie" and time.monotonic() < end:
        time.sleep(0.05)
    assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == "zombie"


def test_being_asked_to_end_lets_every_trial_keep_what_it_has(tmp_path: Path) -> None:
    code = (
        "import signal, sys, time\n"
        "def keep(*_):\n    time.sleep(0.3); print('kept', flush=True); sys.exit(130)\n"
        "signal.signal(signal.SIGTERM, keep); print('ready', flush=True); time.sleep(60)"
    )
    trials = [trial(tmp_path, name, code) for name in ("a", "b", "later")]

    def interrupt(told: Started | Ended) -> None:
        if told.trial.name == "b":
            while not all("ready" in t.log.read_text() for t in trials[:2]):
                time.sleep(0.05)
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted, match="run the same command again to resume"):
        run(trials, then=interrupt)
    assert [t.log.read_text() if t.log.exists() else None for t in trials] == ["ready\nkept\n", "ready\nkept\n", None]


def test_a_directory_that_a_process_of_an_earlier_sweep_works_in_is_waited_for(tmp_path: Path) -> None:
    one = trial(tmp_path, "one", NOTE)
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1)"]) as earlier:
        write_json(tmp_path / "one" / HOLDER, {"pid": earlier.pid, "host": socket.gethostname()})
        threading.Thread(target=earlier.wait).start()
        states: list[int | None] = []
        told = run([one], then=lambda happened: states.append(earlier.poll()))
    assert told == ["one 1", "one fine"]
    assert states == [0, 0]


@pytest.mark.skipif(sys.platform != "linux", reason="this system has no processor affinity")
def test_trials_are_asked_to_end_when_the_sweep_is_killed(tmp_path: Path) -> None:
    code = (
        "import signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: (print('asked', flush=True), sys.exit(130)))\n"
        "print('ready', flush=True); time.sleep(60)"
    )
    program = (
        "import sys\nfrom pathlib import Path\n"
        "from atopipe.pipeline.sweep.executors.interface import Trial\n"
        "from atopipe.pipeline.sweep.executors.pool import LocalPool, slots_of\n"
        f"trial = Trial('one', (sys.executable, '-c', {code!r}), Path('one'), Path('one.log'))\n"
        "LocalPool(slots_of(1, [0], [])).run([trial], lambda told: None)\n"
    )
    (tmp_path / "one").mkdir()
    sweep = subprocess.Popen([sys.executable, "-c", program], cwd=tmp_path)
    log = tmp_path / "one.log"
    _until(lambda: log.exists() and "ready" in log.read_text())
    sweep.kill()
    sweep.wait()
    _until(lambda: "asked" in log.read_text())


def _until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.05)
