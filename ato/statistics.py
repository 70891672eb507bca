"""Which statistics the normalisation layers use in the controller's step; one context manager per way."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


@contextmanager
def batch_statistics(model: nn.Module) -> Iterator[None]:
    """The batch's own statistics; the running ones stay as they are."""
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    training = model.training
    model.train()
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        model.train(training)
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum


@contextmanager
def running_statistics(model: nn.Module) -> Iterator[None]:
    """The running statistics of the whole network, as the authors' code does."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


STATISTICS: dict[str, Callable[[nn.Module], AbstractContextManager[None]]] = {
    "batch": batch_statistics,
    "running": running_statistics,
}
