"""Training that has become slow: said once if its threads wait, and not if a step computes more."""

import os
import subprocess
import sys

import pytest

from atopipe.pipeline.engine.busy import StepWatch


class Watched:
    """A StepWatch whose clocks go as told."""

    def __init__(self) -> None:
        self.wall = self.processor = 0.0
        self.steps, self.said = 0, list[str]()
        self.watch = StepWatch(self.said.append, lambda: self.wall, lambda: self.processor)

    def ten_steps(self, wall: float, processor: float, phase: str = "search") -> None:
        self.wall, self.processor, self.steps = self.wall + wall, self.processor + processor, self.steps + 10
        self.watch.after(phase, self.steps)


def test_threads_that_wait_are_told_of_once() -> None:
    watched = Watched()
    for _ in range(5):
        watched.ten_steps(1.0, 1.9)
    for _ in range(10):
        watched.ten_steps(4.2, 1.9)
    (line,) = watched.said
    assert line.startswith("note    a step takes 4 times as long as at first, because threads wait for processors")
    assert line.endswith("resume it with --threads 1")


@pytest.mark.parametrize(
    ("wall", "processor", "phase"), [(4.2, 8.0, "search"), (2.0, 1.9, "search"), (4.2, 1.9, "dense")]
)
def test_steps_that_compute_more_or_of_another_phase_are_no_wait(wall: float, processor: float, phase: str) -> None:
    watched = Watched()
    for _ in range(5):
        watched.ten_steps(1.0, 1.9)
    for _ in range(10):
        watched.ten_steps(wall, processor, phase)
    assert watched.said == []


def test_one_slow_report_between_fast_ones_is_not_told_of() -> None:
    watched = Watched()
    for position in range(20):
        watched.ten_steps(*((9.0, 2.0) if position % 3 == 2 else (1.0, 1.9)))
    assert watched.said == []


@pytest.mark.parametrize(
    ("given", "found"),
    [({}, "1000 None"), ({"GOMP_SPINCOUNT": "300"}, "300 None"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "None ACTIVE")],
)
def test_openmp_is_told_before_torch_is_loaded_unless_the_user_chose(given: dict[str, str], found: str) -> None:
    code = (
        "import os, sys\nfrom atopipe.pipeline.cli.main import main\nassert 'torch' not in sys.modules\n"
        "main(['--help'])\nprint(os.environ.get('GOMP_SPINCOUNT'), os.environ.get('OMP_WAIT_POLICY'))"
    )
    clean = {name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    done = subprocess.run(
        [sys.executable, "-c", code], env=clean | given, capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.splitlines()[-1] == found
