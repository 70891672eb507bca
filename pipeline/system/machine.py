"""The machine: library versions, hardware, processors, memory."""

import os
import platform
import sys
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

from atopipe.pipeline.system.errors import MissingError
from atopipe.pipeline.system.job import this_job

ORT_PACKAGES = ("onnxruntime-gpu", "onnxruntime")
PACKAGES = {"onnxruntime": ORT_PACKAGES, "mlflow": ("mlflow", "mlflow-skinny")}  # where a module has several


def library_versions(names: Iterable[str]) -> dict[str, str]:
    """Installed versions, without importing anything; some modules may come from one of several packages."""
    return {name: next(filter(None, map(_version, PACKAGES.get(name, (name,)))), "absent") for name in names}


def hardware() -> dict[str, Any]:
    """The machine as the run saw it; the GPU only where the run has loaded torch."""
    import psutil

    torch = sys.modules.get("torch")
    cuda = torch is not None and torch.cuda.is_available()
    return {
        "platform": platform.platform(),
        "python": platform.python_version(),
        "cpu": _cpu_name(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        **({"gpu": torch.cuda.get_device_name(0)} if torch is not None and cuda else {}),
    }


def peak_memory_bytes() -> int:
    """The largest resident size this process has had."""
    if sys.platform == "win32":
        import psutil

        return int(psutil.Process().memory_info().peak_wset)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def is_installed(package: str) -> bool:
    return _version(package) is not None


def runtime_package() -> str:
    """The package of ONNX Runtime that is installed, or else the one that belongs to this platform."""
    there = next(filter(is_installed, ORT_PACKAGES), None)
    gpu = sys.platform in ("linux", "win32") and platform.machine() in ("x86_64", "AMD64")
    return there or ORT_PACKAGES[0 if gpu else 1]


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def available_cores() -> int:
    """The cores this process may use; the processes of a job have equal shares."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // this_job().local_size)


CGROUP = Path("/sys/fs/cgroup")


def available_memory() -> int:
    """Bytes this process may still take: the machine's, or what its container's limit leaves if that is less.

    The processes of a job have equal shares.
    """
    free = int(psutil.virtual_memory().available)
    limit, used = (_cgroup_number(name) for name in ("memory.max", "memory.current"))
    left = free if limit is None else max(0, min(free, limit - (used or 0) + _droppable()))
    return left // this_job().local_size


def require_memory(what: str, needed: int, remedy: str) -> None:
    """Raises MissingError, in a sentence that starts with `what`, where fewer than `needed` bytes are available."""
    free = available_memory()
    if needed > free:
        raise MissingError(f"{what} need {needed / 1e9:.1f} GB of memory and {free / 1e9:.1f} GB are free: {remedy}")


def _cgroup_number(name: str) -> int | None:
    path = CGROUP / name
    text = path.read_text().strip() if path.is_file() else "max"
    return int(text) if text.isdecimal() else None


def _droppable() -> int:
    """Bytes of files that the container holds in memory only for speed."""
    path = CGROUP / "memory.stat"
    lines = path.read_text().splitlines() if path.is_file() else []
    return sum(int(line.split()[1]) for line in lines if line.startswith("inactive_file "))


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
