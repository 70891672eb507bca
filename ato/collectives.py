"""A job of several processes, each with a share of every batch: what they exchange (torch.distributed)."""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor


def count() -> int:
    """Processes of the job; 1 unless a process group was initialised."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def all_reduce_mean(tensors: Sequence[Tensor]) -> None:
    """Replace each tensor by its mean over all processes, in place and bit-equal on all of them."""
    if count() > 1:
        together = torch.cat([tensor.flatten() for tensor in tensors])
        dist.all_reduce(together)
        together /= count()
        for tensor, part in zip(tensors, torch.split(together, [tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(part.view_as(tensor))


def all_reduce_sum(tensor: Tensor) -> None:
    """Replace the tensor by its sum over all processes, in place."""
    if count() > 1:
        dist.all_reduce(tensor)


def broadcast(tensor: Tensor) -> None:
    """Give every process the first one's tensor, in place."""
    if count() > 1:
        dist.broadcast(tensor, src=0)
