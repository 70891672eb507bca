"""Who handles Ctrl-C and SIGTERM: the main thread's code while it asks for it, and nobody in another thread."""

import signal
from concurrent.futures import ThreadPoolExecutor

import pytest

from atopipe.pipeline.system.signals import StopRequest, deferred, terminable


def handlers() -> list[object]:
    return [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]


def nested() -> list[object]:
    with terminable(), StopRequest().listening(), deferred():
        return handlers()


def test_handlers_are_set_on_the_main_thread_and_given_back() -> None:
    before = handlers()
    assert not set(map(id, nested())) & set(map(id, before))
    assert handlers() == before


def test_another_thread_leaves_the_signals_alone() -> None:
    before = handlers()
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(nested).result() == before


def test_a_deferred_signal_comes_at_the_end() -> None:
    done = []
    try:
        with deferred():
            signal.raise_signal(signal.SIGTERM)
            done.append("the rest")
    except KeyboardInterrupt:
        done.append("the signal")
    assert done == ["the rest", "the signal"]


def test_a_job_may_be_asked_twice_and_one_process_stops_at_once() -> None:
    request = StopRequest()
    request.note()
    request.note()
    assert request.made
    with pytest.raises(KeyboardInterrupt):
        request.make()
