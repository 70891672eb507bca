"""What the kernel's control groups leave to this process: containers, systemd and job systems set limits with them.

A group is held to its own limits and to those of every group around it. Source: the kernel's documents of cgroup v2
(`cpu.max`, `memory.max`, `memory.stat`) and of v1 (`cpu.cfs_quota_us`, `memory.limit_in_bytes`).
"""

from collections.abc import Iterator
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")
UNLIMITED = 1e9


def cpu_quota() -> float:
    """Processors' worth of time that the groups of this process grant; at least 1, 1e9 without a limit."""
    return min(map(_quota_of, _groups("cpu")), default=UNLIMITED)


def free_memory() -> int | None:
    """Bytes that the groups of this process leave, cached files counted as free; None without a limit."""
    return min((free for group in _groups("memory") if (free := _free_in(group)) is not None), default=None)


def _groups(controller: str) -> Iterator[Path]:
    """The folders of the groups, innermost first, ending at the mount's root, which in a container is its own group."""
    text = MEMBERSHIP.read_text() if MEMBERSHIP.is_file() else ""
    for line in (*text.splitlines(), f"0:{controller}:/", "0::/"):
        _, names, path = line.split(":", 2)
        if not names or controller in names.split(","):
            mount = ROOT / controller if names else ROOT
            inner = mount / path.strip("/")
            yield from (folder for folder in (inner, *inner.parents) if folder.is_relative_to(mount))


def _quota_of(group: Path) -> float:
    both = _read(group / "cpu.max")
    quota, period = both.split() if both else (_read(group / f"cpu.cfs_{part}_us") for part in ("quota", "period"))
    return UNLIMITED if quota in {"", "max", "-1"} else max(1.0, int(quota) / int(period))


def _free_in(group: Path) -> int | None:
    limit = _read(group / "memory.max") or _read(group / "memory.limit_in_bytes")
    used = _read(group / "memory.current") or _read(group / "memory.usage_in_bytes")
    if not limit.isdecimal():
        return None
    lines = _read(group / "memory.stat").splitlines()
    cached = sum(int(line.split()[1]) for line in lines if line.startswith("inactive_file "))
    return max(0, int(limit) - int(used or 0) + cached)


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
