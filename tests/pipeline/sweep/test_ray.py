"""The executor for Ray: what a worker does is tested without it, the rest where it is installed."""

import os
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from atopipe.pipeline.cli.main import main
from atopipe.pipeline.sweep.executors.interface import Ended, Started, Trial
from atopipe.pipeline.sweep.executors.ray_core import RayCluster, carry_out

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals")
needs_ray = pytest.mark.skipif(find_spec("ray") is None, reason="ray is not installed")
SWEEP = ("sweep", "--model", "resnet20", "--target-flops", "0.5", "--executor", "ray")


def test_a_worker_gives_the_exit_code_and_starts_again_what_was_killed(tmp_path: Path) -> None:
    note = f"import os, pathlib; p = pathlib.Path({str(tmp_path / 'n')!r}); n = p.exists(); p.touch();"
    once = f"{note} n or os.kill(os.getpid(), 9)"
    for code, command in ((5, "raise SystemExit(5)"), (0, once), (-9, "import os; os.kill(os.getpid(), 9)")):
        assert carry_out([sys.executable, "-c", command], ".", "log", str(tmp_path), "", 1) == code


def test_a_worker_passes_its_share_of_cores_and_no_other_setting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ATOPIPE_EPOCHS", "99")
    show = "import os; print(sorted(n for n in os.environ if n.startswith('ATOPIPE_')), os.environ['ATOPIPE_THREADS'])"
    carry_out([sys.executable, "-c", show], ".", "log", str(tmp_path), "", 3)
    assert (tmp_path / "log").read_text() == "['ATOPIPE_THREADS'] 3\n"


@pytest.mark.skipif(find_spec("ray") is not None, reason="ray is installed")
def test_without_ray_the_line_that_installs_it_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([*SWEEP]) == 5
    assert "pip install 'atopipe[ray]'" in capsys.readouterr().err


def test_an_address_without_ray_as_executor_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([*SWEEP[:-1], "local", "--address", "somewhere:6379"]) == 2
    assert "add --executor ray" in capsys.readouterr().err


@needs_ray
@pytest.mark.slow
def test_an_address_that_nobody_answers_at_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([*SWEEP, "--address", "127.0.0.1:1"]) == 5
    assert "no Ray cluster answers at '127.0.0.1:1'" in capsys.readouterr().err


@needs_ray
@pytest.mark.slow
def test_trials_run_in_order_and_failures_stay_alone(tmp_path: Path) -> None:
    def trial(name: str, code: str, after: str | None = None) -> Trial:
        return Trial(name, (sys.executable, "-c", code), tmp_path, tmp_path / f"{name}.log", after)

    told: list[str] = []

    def tell(happened: Started | Ended) -> None:
        told.append(
            f"{happened.trial.name} {'started' if isinstance(happened, Started) else happened.reason or 'fine'}"
        )

    trials = [trial("first", "print(1)"), trial("a", "raise SystemExit(5)", "first"), trial("b", "print(2)", "first")]
    RayCluster(None, 2, wants_gpu=False).run(trials, tell)
    assert told[:2] == ["first started", "first fine"]
    assert {*told[2:]} == {"a started", "a exit code 5", "b started", "b fine"}
    assert (tmp_path / "b.log").read_text() == "2\n"
