"""Ctrl-C, SIGTERM and a closed terminal: a stage is given up at once, training ends after the step it is in.

Handlers belong to the main thread of a program: called from another one, as by a scheduler of trials or a notebook's
worker, everything here leaves the signals to whoever owns them.
"""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

Handler = Callable[[int, FrameType | None], object]


def ending() -> tuple[signal.Signals, ...]:
    """The signals that ask a process to end; a closed terminal's only if nobody, as nohup does, has it ignored.

    SIGUSR1 is what Slurm sends before the time is up (`--signal=USR1@120`).
    """
    others = (getattr(signal, name, None) for name in ("SIGHUP", "SIGUSR1"))  # there are none on Windows
    asking = (number for number in others if number is not None and signal.getsignal(number) is not signal.SIG_IGN)
    return (signal.SIGINT, signal.SIGTERM, *asking)


class StopRequest:
    """Whether the process was asked to stop; training then keeps what it has after the step it is in."""

    def __init__(self) -> None:
        self.made = False

    def make(self, *_: object) -> None:
        """As a signal handler; asked a second time, the process stops at once."""
        if self.made:
            raise KeyboardInterrupt
        self.made = True

    def note(self, *_: object) -> None:
        """The same, where being asked again says nothing new: the launcher of a job repeats what its processes got."""
        self.made = True

    @contextmanager
    def listening(self) -> Iterator[None]:
        """While active, they make the request."""
        with handled_by(self.make, *ending()):
            yield


stop_requested = StopRequest()
"""Whether this process was asked to end: a library may make another error of the KeyboardInterrupt, or lose it."""


@contextmanager
def terminable() -> Iterator[None]:
    """While active, the others do what Ctrl-C does, so that a stage can clean up."""
    stop_requested.made = False
    try:
        with handled_by(_interrupt, *ending()):
            yield
    finally:
        stop_requested.made = False  # what is started next was not asked to end


@contextmanager
def deferred() -> Iterator[None]:
    """While active, they wait; at the end they do what Ctrl-C does."""
    request = StopRequest()
    with handled_by(request.note, *ending()):
        yield
    if request.made:
        raise KeyboardInterrupt


@contextmanager
def handled_by(handler: Handler, *numbers: signal.Signals) -> Iterator[None]:
    """While active, these signals are the handler's; on the main thread, which alone may set one, and not elsewhere."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def _interrupt(*_: object) -> None:
    stop_requested.made = True
    raise KeyboardInterrupt
