"""How many processors this process may use."""

import os
from pathlib import Path


def available_threads() -> int:
    """Return how many processors this process may use: its affinity, lowered to its control group's CPU quota."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(affinity, int(cpu_quota(Path("/sys/fs/cgroup")))))


def cpu_quota(root: Path) -> float:
    """Return the processors granted by the control group mounted at `root`, version 2 or 1; at least 1, or 1e9.

    Source: the kernel's cgroup-v2 (`cpu.max` holds "quota period" or "max period", in microseconds) and the CFS
    bandwidth documentation of version 1 (`cpu.cfs_quota_us` is -1 without a limit).
    """
    unlimited = 1e9
    try:
        if (root / "cpu.max").exists():
            quota, period = (root / "cpu.max").read_text().split()
        else:
            quota, period = ((root / "cpu" / f"cpu.cfs_{part}_us").read_text().strip() for part in ("quota", "period"))
    except OSError:
        return unlimited
    return unlimited if quota in {"max", "-1"} else max(1.0, int(quota) / int(period))
