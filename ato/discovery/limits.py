"""Limits on work whose end nobody can foresee: some networks would be traced for hours, or until the memory is full."""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import psutil

CHECK_SECONDS = 0.2


class LimitError(BaseException):
    """Some work went beyond its limits; no exception that the code which is stopped could catch by mistake."""


@contextmanager
def limits(seconds: float, gibibytes: float) -> Iterator[None]:
    """Raises LimitError in its block when that takes more processor time, or the process grows by more.

    The time is that of this thread, so that what else the machine does makes no difference. Needs the main thread of a
    POSIX system; elsewhere there is no limit. A timer that was set before is set again.
    """
    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        yield
        return

    process = psutil.Process()
    end, most = time.thread_time() + seconds, process.memory_info().rss + gibibytes * 2**30

    def look(*_: object) -> None:
        if time.thread_time() > end:
            raise LimitError(f"it takes more than {seconds:g} s of processor time")
        if process.memory_info().rss > most:
            raise LimitError(f"it needs more than {gibibytes:g} GiB")

    handler = signal.signal(signal.SIGALRM, look)
    timer = signal.setitimer(signal.ITIMER_REAL, CHECK_SECONDS, CHECK_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, *timer)
        signal.signal(signal.SIGALRM, handler)
