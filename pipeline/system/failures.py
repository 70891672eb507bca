"""Any exception as one sentence and one exit code.

The leaves (`ato`, `export`, `validate`) raise their own exceptions; `explain` maps those as well. They are named by
string, so that reading this table loads none of the heavy libraries that the leaves need.
"""

import errno
import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from atopipe.pipeline.system.errors import EXPORT_OR_PARITY, AtopipeError, Interrupted, MissingError, UsageError
from atopipe.pipeline.system.text import reason

LEAF_EXIT_CODES: Mapping[str, int] = {
    "atopipe.ato.groups.GroupsError": MissingError.exit_code,
    "atopipe.ato.groups.NoGroupsError": UsageError.exit_code,
    "atopipe.ato.discovery.capture.GraphError": UsageError.exit_code,
    "atopipe.ato.search.budget.BudgetError": UsageError.exit_code,
    "atopipe.ato.schedule.ScheduleError": UsageError.exit_code,
    "atopipe.ato.removal.structure.StructureError": EXPORT_OR_PARITY,
    "atopipe.ato.search.mask_search.DivergedError": AtopipeError.exit_code,
    "atopipe.ato.removal.shrink.LossyError": EXPORT_OR_PARITY,
    "atopipe.export.onnx.ExportError": EXPORT_OR_PARITY,
    "atopipe.export.variants.QuantizeError": EXPORT_OR_PARITY,
    "atopipe.validate.parity.ParityError": EXPORT_OR_PARITY,
    "atopipe.validate.accuracy.AccuracyError": EXPORT_OR_PARITY,
    "atopipe.validate.latency.LatencyError": EXPORT_OR_PARITY,
    "atopipe.validate.session.SessionError": EXPORT_OR_PARITY,
    "atopipe.validate.session.ProviderError": MissingError.exit_code,
}

OUT_OF_MEMORY = frozenset({"builtins.MemoryError", "torch.OutOfMemoryError"})
CPU_ALLOCATOR = "DefaultCPUAllocator: can't allocate memory"  # a plain RuntimeError in torch
UNITS = {"bytes": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}  # as torch writes them
OUT_OF_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT})
NEXT_TO_NOTHING = 10**6  # bytes
NOT_WRITABLE = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})


@dataclass(frozen=True)
class Failure:
    """The message to the user, and the exit code of the process."""

    message: str
    exit_code: int


def explain(error: BaseException, folder: Path | None = None) -> Failure | None:
    """The failure `error` stands for, or None where it is a defect and its traceback is wanted.

    `folder` is where the run was writing: the operating system does not always say.
    """
    if isinstance(error, AtopipeError):
        return Failure(str(error), error.exit_code)
    names = {f"{kind.__module__}.{kind.__qualname__}" for kind in type(error).__mro__}
    for name in names & LEAF_EXIT_CODES.keys():
        return Failure(str(error), LEAF_EXIT_CODES[name])
    if isinstance(error, SystemExit):
        return Failure(f"code that was called failed: {reason(error)}: let it raise an error", UsageError.exit_code)
    if isinstance(error, KeyboardInterrupt):
        return Failure("interrupted: complete stages stay usable", Interrupted.exit_code)
    if names & OUT_OF_MEMORY or CPU_ALLOCATOR in str(error):
        return Failure(_out_of_memory(str(error)), MissingError.exit_code)
    return _explain_os(error, folder) if isinstance(error, OSError) else None


def _out_of_memory(text: str) -> str:
    """How much was asked for and how much is there: torch's allocators say the former, for a GPU both."""
    from atopipe.pipeline.system.machine import available_memory

    asked = re.search(r"tried to allocate ([\d.]+) (\w+)", text, re.IGNORECASE)
    left = re.search(r"of which ([\d.]+) (\w+) is free", text)
    free = _bytes(left) if left else available_memory()
    wanted = f"{_bytes(asked) / 1e9:.1f} GB more were requested and " if asked else ""
    return f"out of memory: {wanted}{free / 1e9:.1f} GB are free: lower --batch-size or data.input_size"


def _bytes(size: re.Match[str]) -> float:
    return float(size[1]) * UNITS[size[2]]


def _explain_os(error: OSError, folder: Path | None) -> Failure | None:
    if isinstance(error, shutil.Error):  # of a copied tree: its errors as text
        codes = (code for code in (*OUT_OF_SPACE, *NOT_WRITABLE) if os.strerror(code) in str(error))
        error = OSError(next(codes, None), str(error))
    place = Path(error.filename) if isinstance(error.filename, str) else (folder or Path.cwd())
    if error.errno in OUT_OF_SPACE:
        return Failure(_no_space(error, folder or place), MissingError.exit_code)
    if error.errno == errno.EFBIG:
        message = f"a file in '{folder or place}' would be larger than this process may write: raise ulimit -f"
        return Failure(message, MissingError.exit_code)
    if error.errno == errno.ENOENT and error.filename is None and "temporary directory" in str(error.strerror):
        message = "no folder for temporary files can be written: free some space there, or set TMPDIR to another"
        return Failure(message, MissingError.exit_code)
    if error.errno in NOT_WRITABLE:
        message = f"'{place}' cannot be used ({error.strerror}): change its permissions, or choose another --output"
        return Failure(message, MissingError.exit_code)
    return None


def _no_space(error: OSError, place: Path) -> str:
    """What is used up, and where: space, names of files or a quota, of the run's folder or that of temporary files."""
    if error.errno == errno.EDQUOT:
        return f"the quota of disk space is used up in '{place}': free some, or choose another --output"
    full = next(filter(_is_full, (place, *_temporary_folder())), place)
    remedy = "choose another --output" if full == place else "set TMPDIR to another folder"
    free = shutil.disk_usage(_existing(full)).free
    if free >= NEXT_TO_NOTHING and _is_full(full):
        return f"no inodes left in '{full}' for more files: remove some, or {remedy}"
    return f"no space left in '{full}' ({free / 1e6:.1f} MB free): free some, or {remedy}"


def _is_full(place: Path) -> bool:
    if not hasattr(os, "statvfs"):  # as on Windows
        return shutil.disk_usage(_existing(place)).free < NEXT_TO_NOTHING
    found = os.statvfs(_existing(place))
    return found.f_bavail * found.f_frsize < NEXT_TO_NOTHING or (found.f_files > 0 and found.f_favail == 0)


def _temporary_folder() -> list[Path]:
    try:
        return [Path(tempfile.gettempdir())]
    except OSError:  # none can be written
        return []


def _existing(path: Path) -> Path:
    return next(candidate for candidate in (path, *path.absolute().parents) if candidate.exists())
