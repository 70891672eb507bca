"""The machine: library versions, hardware, processors, memory."""

import os
import platform
import sys
from collections.abc import Iterable
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

from atopipe.pipeline.system.control_groups import cpu_quota, free_memory
from atopipe.pipeline.system.errors import MissingError
from atopipe.pipeline.system.job import this_job

PROCESS_STATUS, CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")
PEAK_OF_RESIDENT_SIZE = "5"  # what the kernel forgets when this is written to clear_refs (proc(5))
ORT_PACKAGES = ("onnxruntime-gpu", "onnxruntime")
PACKAGES = {"onnxruntime": ORT_PACKAGES, "mlflow": ("mlflow", "mlflow-skinny")}  # where a module has several


def library_versions(names: Iterable[str]) -> dict[str, str]:
    """Installed versions, without importing anything; some modules may come from one of several packages."""
    return {name: next(filter(None, map(_version, PACKAGES.get(name, (name,)))), "absent") for name in names}


def hardware() -> dict[str, Any]:
    """The machine as the run saw it; the GPU only where the run has loaded torch."""
    torch = sys.modules.get("torch")
    cuda = torch is not None and torch.cuda.is_available()
    return {
        "platform": platform.platform(),
        "python": platform.python_version(),
        "cpu": _cpu_name(),
        "cores": machine_processors(),
        "memory_bytes": psutil.virtual_memory().total,
        **({"gpu": torch.cuda.get_device_name(0)} if torch is not None and cuda else {}),
    }


def peak_memory_bytes() -> int:
    """The largest resident size this process has had, on Linux since `reset_peak_memory`.

    Linux begins `ru_maxrss` of a new process with the size of its parent; VmHWM is the process's own.
    """
    if PROCESS_STATUS.exists():
        lines = PROCESS_STATUS.read_text().splitlines()
        if own := [int(line.split()[1]) for line in lines if line.startswith("VmHWM:")]:
            return own[0] * 1024
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def reset_peak_memory() -> None:
    """Restarts the measurement of `peak_memory_bytes`, if the kernel allows it."""
    with suppress(OSError):
        CLEAR_REFS.write_text(PEAK_OF_RESIDENT_SIZE)


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


def machine_processors() -> int:
    """Processors that the operating system lets this process run on, whatever its share of their time."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def available_processors() -> int:
    """Processors this process may keep busy: its affinity, lowered to the CPU quota of its control groups; at least 1.

    The processes of a job have equal shares. Nothing else in the project counts processors.
    """
    return max(1, min(machine_processors(), int(cpu_quota())) // this_job().local_size)


def available_memory() -> int:
    """Bytes this process may still take: the machine's, or what its control groups leave if that is less.

    The processes of a job have equal shares.
    """
    free = int(psutil.virtual_memory().available)
    limit = free_memory()
    return (free if limit is None else min(free, limit)) // this_job().local_size


def require_memory(what: str, needed: int, remedy: str) -> None:
    """Raises MissingError, in a sentence that starts with `what`, where fewer than `needed` bytes are available."""
    free = available_memory()
    if needed > free:
        raise MissingError(f"{what} need {needed / 1e9:.1f} GB of memory and {free / 1e9:.1f} GB are free: {remedy}")
