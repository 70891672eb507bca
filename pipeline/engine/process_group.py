"""One training job of several processes, as torchrun starts them: who this process is, and how the job holds together.

Rank 0 writes, prints and runs every stage. The others take part in the stages that train, and end quietly.
"""

import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING

from atopipe.pipeline.system.errors import MissingError
from atopipe.pipeline.system.signals import StopRequest, handled_by
from atopipe.pipeline.system.text import first_line

if TYPE_CHECKING:
    import torch
    from torch import nn

    from atopipe.ato.execution import Forward


SILENCE = timedelta(minutes=30)  # after which a process that does not answer is given up


LOST = "a process of this training job died or was stopped: complete stages stay usable, run the same command again"


class ProcessLostError(MissingError):
    """The job cannot continue without the lost process."""


@contextmanager
def together(device: "torch.device", stop: StopRequest) -> Iterator[None]:
    """While active, the processes of the job can talk: through NCCL between GPUs, through gloo between CPUs.

    Raises ProcessLostError when one of them is gone, or the launcher ends this one because another is; once they have
    all been asked to `stop`, the launcher's signal says nothing new.
    """
    import torch
    from torch import distributed as dist

    def give_up(*_: object) -> None:
        if not stop.made:
            raise ProcessLostError(LOST)

    if device.type == "cuda":
        torch.cuda.set_device(device)
    with handled_by(give_up, signal.SIGTERM):
        try:
            dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", timeout=SILENCE)
            yield
            dist.destroy_process_group()
        except RuntimeError as error:
            if _is_loss(error):
                words = f"; NCCL says: {first_line(error)}" if "NCCL" in str(error) else ""
                raise ProcessLostError(LOST + words) from error
            raise


def _is_loss(error: RuntimeError) -> bool:
    from torch import distributed as dist

    return isinstance(error, dist.DistError) or any(word in str(error) for word in ("gloo", "NCCL"))


def replicated(model: "nn.Module") -> "Forward":
    """The network with its gradients averaged over all processes, each of which starts from the first one's weights."""
    from torch.nn.parallel import DistributedDataParallel

    return DistributedDataParallel(model, gradient_as_bucket_view=True)


def broadcast_flags(answers: Sequence[bool]) -> list[bool]:
    """The first process's answers, in every process."""
    import torch

    from atopipe.ato import collectives

    votes = torch.tensor([int(answer) for answer in answers])
    collectives.broadcast(votes)
    return [bool(vote) for vote in votes]


def broadcast_bytes(content: bytes | None) -> bytes:
    """The first process's bytes, in every process; none are no bytes."""
    import torch

    from atopipe.ato import collectives

    size = torch.tensor(len(content or b""))
    collectives.broadcast(size)
    if not size:
        return b""
    carrier = torch.frombuffer(bytearray(content or bytes(int(size))), dtype=torch.uint8)
    collectives.broadcast(carrier)
    return carrier.numpy().tobytes()
