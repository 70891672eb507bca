"""Settings of the whole process that a user's code may change, at import or when called, and that a run relies on."""

import random
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP", "SIGALRM")  # as far as the system has them
Setting = tuple[Callable[[], Any], Callable[[Any], object]]


@contextmanager
def preserved() -> Iterator[None]:
    """While active, code may set what it likes; afterwards everything in `_settings` is as it was before.

    Among it are torch's default number format and device, gradients, threads, filters of warnings, and signals.
    """
    settings = _settings()
    before = [read() for read, _ in settings]
    with warnings.catch_warnings():
        try:
            yield
        finally:
            for value, (read, write) in zip(before, settings, strict=True):
                if read() != value:
                    write(value)


@contextmanager
def random_state_preserved() -> Iterator[None]:
    """While active, code may seed or draw from the global generators; afterwards they go on as if it had not."""
    import numpy as np
    import torch

    of_python, of_numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        try:
            yield
        finally:
            random.setstate(of_python)
            np.random.set_state(of_numpy)


def _settings() -> list[Setting]:
    """Pairs of what reads a setting and what sets it to such a value."""
    import numpy as np
    import torch

    def use_device(device: torch.device) -> None:
        torch.set_default_device(None if device.type == "cpu" else device)

    return [
        (torch.get_default_dtype, torch.set_default_dtype),
        (torch.get_default_device, use_device),
        (torch.is_grad_enabled, torch.set_grad_enabled),
        (torch.get_num_threads, torch.set_num_threads),
        (torch.is_anomaly_enabled, torch.autograd.set_detect_anomaly),
        (torch.are_deterministic_algorithms_enabled, torch.use_deterministic_algorithms),
        (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
        (np.geterr, lambda kinds: np.seterr(**kinds)),
        (sys.getrecursionlimit, sys.setrecursionlimit),
        (lambda: (sys.stdout, sys.stderr), _use_streams),
        *(_handler(getattr(signal, name)) for name in SIGNALS if hasattr(signal, name) and _may_set_signals()),
    ]


def _may_set_signals() -> bool:
    return threading.current_thread() is threading.main_thread()


def _handler(number: signal.Signals) -> Setting:
    return lambda: signal.getsignal(number), lambda handler: signal.signal(number, handler)


def _use_streams(streams: tuple[Any, Any]) -> None:
    sys.stdout, sys.stderr = streams
