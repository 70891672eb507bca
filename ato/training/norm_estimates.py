"""Running statistics of normalisation layers, estimated again from training images.

While a network is pruned its weights move faster than its running statistics follow: those of a layer with momentum m
lag by some 1 / m steps. A few hundred images tell what they would settle at.
"""

import itertools
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from atopipe.ato.execution import PLAIN, Execution
from atopipe.ato.training.loop import EvalBatches

LOOKS = 4  # a look at the network takes so many times fewer images than what is delivered
LAGS = 3  # times 1 / m: then e^-3 = 5 % of what was before is left


@dataclass(frozen=True, eq=False)
class Calibration:
    """The training images for the estimates of a run: equally large batches, as the network sees them in evaluation."""

    batches: EvalBatches
    execution: Execution = PLAIN

    def settle(self, network: nn.Module) -> None:
        """Estimate the statistics of what is delivered, in place."""
        estimate_statistics(network, (images for images, _ in self.batches), self.execution)

    def look(self, network: nn.Module) -> AbstractContextManager[None]:
        """While active, `network` has statistics of some of the images."""
        few = itertools.islice(self.batches, -(-len(self.batches) // LOOKS))
        return estimated_statistics(network, (images for images, _ in few), self.execution)


@torch.no_grad()
def estimate_statistics(model: nn.Module, batches: Iterable[Tensor], execution: Execution = PLAIN) -> None:
    """Give the normalisation layers of `model` the mean statistics of `batches` (images [B, C, H, W]), in place.

    Every batch counts the same, so they should be equally large. The rest of the network evaluates; parameters, modes
    and random generators stay as they are. Without batches, or without such layers, nothing happens.
    """
    norms, training = _tracking(model), [module.training for module in model.modules()]
    momenta = [norm.momentum for norm in norms]
    model.eval()
    try:
        for number, images in enumerate(batches if norms else ()):
            for norm in norms:
                norm.train()
                norm.momentum = 1 / (number + 1)  # a cumulative average
            execution.logits(model, images)
    finally:
        for module, mode in zip(model.modules(), training, strict=True):
            module.training = mode
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum


@contextmanager
def estimated_statistics(model: nn.Module, batches: Iterable[Tensor], execution: Execution = PLAIN) -> Iterator[None]:
    """While active, `model` has statistics of `batches`; afterwards its own again, bit for bit."""
    buffers = [buffer for norm in _tracking(model) for buffer in norm.buffers(recurse=False)]
    before = [buffer.clone() for buffer in buffers]
    try:
        estimate_statistics(model, batches, execution)
        yield
    finally:
        for buffer, value in zip(buffers, before, strict=True):
            buffer.copy_(value)


def lag_of(model: nn.Module) -> int:
    """After so many steps running statistics have followed a sudden change; 0 where there are none."""
    return max((round(LAGS / norm.momentum) for norm in _tracking(model) if norm.momentum), default=0)


def _tracking(model: nn.Module) -> list[_NormBase]:
    norms = [module for module in model.modules() if isinstance(module, _NormBase)]
    return [norm for norm in norms if norm.track_running_stats and norm.running_mean is not None]
