"""Ctrl-C and SIGTERM: a stage is given up at once, training ends after the step it is in."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

Handler = Callable[[int, FrameType | None], object]


class StopRequest:
    """Whether the process was asked to stop; training then keeps what it has after the step it is in."""

    def __init__(self) -> None:
        self.made = False

    def make(self, *_: object) -> None:
        """As a signal handler; asked a second time, the process stops at once."""
        if self.made:
            raise KeyboardInterrupt
        self.made = True

    @contextmanager
    def listening(self) -> Iterator[None]:
        """While active, Ctrl-C and SIGTERM make the request."""
        with _handled_by(self.make):
            yield


told = StopRequest()
"""Whether this process was told to end: a library may make another error of the KeyboardInterrupt, or lose it."""


@contextmanager
def terminable() -> Iterator[None]:
    """While active, SIGTERM does what Ctrl-C does, so that a stage can put away what it has begun."""
    told.made = False
    with _handled_by(_interrupt):
        yield


@contextmanager
def deferred() -> Iterator[None]:
    """While active, Ctrl-C and SIGTERM wait; at the end they do what Ctrl-C does."""
    request = StopRequest()
    with _handled_by(lambda *_: setattr(request, "made", True)):
        yield
    if request.made:
        raise KeyboardInterrupt


@contextmanager
def _handled_by(handler: Handler) -> Iterator[None]:
    before = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def _interrupt(*_: object) -> None:
    told.made = True
    raise KeyboardInterrupt
