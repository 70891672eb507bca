"""What this process may use of its machine: processors by affinity and quota, memory by control group."""

import os
from pathlib import Path

import pytest

from atopipe.pipeline.system import control_groups, machine
from atopipe.pipeline.system.control_groups import cpu_quota
from atopipe.pipeline.system.job import Job


@pytest.fixture
def groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The mount of the control groups; this process is in a slice of version 2 and a container of version 1."""
    monkeypatch.setattr(control_groups, "ROOT", tmp_path)
    monkeypatch.setattr(control_groups, "MEMBERSHIP", tmp_path / "self")
    (tmp_path / "self").write_text("3:cpu,cpuacct:/docker/a1\n2:memory:/docker/a1\n0::/user.slice/run-7.scope\n")
    return tmp_path


def put(root: Path, files: dict[str, str]) -> None:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)


INNER = "cpu/docker/a1/cpu.cfs"


@pytest.mark.parametrize(
    ("files", "processors"),
    [
        ({"cpu.max": "150000 100000\n"}, 1.5),
        ({"cpu.max": "max 100000\n"}, 1e9),
        ({"cpu.max": "20000 100000\n"}, 1.0),
        ({"cpu/cpu.cfs_quota_us": "400000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 4.0),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 1e9),
        ({"user.slice/run-7.scope/cpu.max": "200000 100000", "user.slice/cpu.max": "300000 100000"}, 2.0),
        ({"user.slice/run-7.scope/cpu.max": "max 100000", "user.slice/cpu.max": "300000 100000"}, 3.0),
        ({"other.slice/cpu.max": "100000 100000"}, 1e9),
        ({f"{INNER}_quota_us": "500000", f"{INNER}_period_us": "100000"}, 5.0),
        ({}, 1e9),
    ],
    ids=[
        "v2",
        "v2 unlimited",
        "v2 below one",
        "v1",
        "v1 unlimited",
        "the inner of two",
        "the outer of two",
        "another group",
        "v1 container",
        "no control group",
    ],
)
def test_the_quota_is_the_least_of_the_groups_around_this_process(
    files: dict[str, str], processors: float, groups: Path
) -> None:
    put(groups, files)
    assert cpu_quota() == processors


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no processor affinity")
def test_processors_follow_the_affinity() -> None:
    before = os.sched_getaffinity(0)
    assert 1 <= machine.available_processors() <= len(before)
    os.sched_setaffinity(0, {min(before)})
    try:
        assert machine.available_processors() == 1
    finally:
        os.sched_setaffinity(0, before)


def test_processors_are_shared_by_the_processes_of_a_job(groups: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "machine_processors", lambda: 64)
    put(groups, {"cpu.max": "800000 100000"})
    assert machine.available_processors() == 8
    monkeypatch.setattr(machine, "this_job", lambda: Job(0, 4, 0, 4))
    assert machine.available_processors() == 2
    put(groups, {"cpu.max": "200000 100000"})
    assert machine.available_processors() == 1


def test_a_containers_limit_counts_less_what_it_uses_and_cannot_drop(
    groups: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = machine.available_memory()
    put(groups, {"memory.max": "max\n"})
    assert machine.available_memory() == pytest.approx(whole, rel=0.2)
    put(groups, {"memory.max": "5000\n", "memory.current": "3000\n", "memory.stat": "anon 1000\ninactive_file 400\n"})
    assert machine.available_memory() == 2400
    inner = "memory/docker/a1/memory"
    put(groups, {f"{inner}.limit_in_bytes": "1500", f"{inner}.usage_in_bytes": "100"})
    assert machine.available_memory() == 1400
    monkeypatch.setattr(machine, "this_job", lambda: Job(0, 4, 0, 4))
    assert machine.available_memory() == 350
