"""Which statistics the normalisation layers use in the controller's step; one context manager per way.

In both the rest of the network evaluates (no dropout), and no running statistic moves.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


@contextmanager
def running_statistics(model: nn.Module) -> Iterator[None]:
    """The running statistics of the whole network, as the authors' code does."""
    training = [module.training for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in zip(model.modules(), training, strict=True):
            module.training = mode


@contextmanager
def batch_statistics(model: nn.Module) -> Iterator[None]:
    """The batch's own statistics in batch normalisation."""
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    tracked = [norm.track_running_stats for norm in norms]
    with running_statistics(model):
        for norm in norms:
            norm.train()
            norm.track_running_stats = False  # the layer reads the batch and writes nothing
        try:
            yield
        finally:
            for norm, tracks in zip(norms, tracked, strict=True):
                norm.track_running_stats = tracks


STATISTICS: dict[str, Callable[[nn.Module], AbstractContextManager[None]]] = {
    "batch": batch_statistics,
    "running": running_statistics,
}
