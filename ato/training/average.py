"""The moving average of a network's weights: it follows in a few operations, without waiting for the device."""

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from atopipe.ato.snapshot import Snapshot

COUNT = "n_averaged"  # as torch's own average calls it in a state
MODULE = "module."


class MovingAverage:
    """`module`: decay * itself + (1 - decay) * the network, after every step; after the first one, the network.

    Buffers of whole numbers, such as counters, are the network's own.
    """

    def __init__(self, model: nn.Module, decay: float, steps: int = 0) -> None:
        self.module, self.decay, self.steps = copy.deepcopy(model), decay, steps

    @torch.no_grad()
    def follow(self, model: nn.Module) -> None:
        """Once a step is complete."""
        pairs = list(zip(_values(self.module), _values(model), strict=True))
        moved = [(own, its) for own, its in pairs if own.is_floating_point() and self.steps > 0]
        copied = [(own, its) for own, its in pairs if not (own.is_floating_point() and self.steps > 0)]
        for dtype in {own.dtype for own, _ in moved}:
            own, its = zip(*((own, its) for own, its in moved if own.dtype == dtype), strict=True)
            torch._foreach_lerp_(own, its, 1 - self.decay)
        if copied:
            torch._foreach_copy_([own for own, _ in copied], [its for _, its in copied])
        self.steps += 1

    def snapshot(self) -> Snapshot:
        """As torch's AveragedModel names its state."""
        state = {f"{MODULE}{name}": tensor for name, tensor in self.module.state_dict().items()}
        return Snapshot({COUNT: torch.tensor(self.steps), **state}, {})

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Load the tensors of a snapshot of a network of the same shapes."""
        self.steps = int(tensors[COUNT])
        self.module.load_state_dict(
            {name.removeprefix(MODULE): tensor for name, tensor in tensors.items() if name != COUNT}
        )


def _values(module: nn.Module) -> list[Tensor]:
    return [tensor.detach() for tensor in (*module.parameters(), *module.buffers())]
