"""A process that is asked to end, in whatever way."""

import signal
from collections.abc import Iterator

import pytest

from atopipe.pipeline.system.signals import StopRequest, deferred, ending, stop_requested, terminable


@pytest.fixture
def hangup() -> Iterator[None]:
    """The signal of a closed terminal as a shell leaves it."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.usefixtures("hangup")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1])
def test_a_closed_terminal_asks_as_the_others_do(number: signal.Signals) -> None:
    stop = StopRequest()
    with stop.listening():
        signal.raise_signal(number)
    assert stop.made
    with pytest.raises(KeyboardInterrupt), terminable():
        signal.raise_signal(number)
    assert not stop_requested.made
    waits = deferred()
    waits.__enter__()
    signal.raise_signal(number)
    with pytest.raises(KeyboardInterrupt):
        waits.__exit__(None, None, None)


@pytest.mark.usefixtures("hangup")
def test_under_nohup_a_closed_terminal_says_nothing() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    assert ending() == (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
    with terminable():
        signal.raise_signal(signal.SIGHUP)
