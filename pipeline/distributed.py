"""One training job of several processes, as torchrun starts them: who this process is, and how the job holds together.

Rank 0 writes, prints and runs every stage. The others take part in the stages that train, and end quietly.
"""

import os
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, NoReturn

from atopipe.pipeline.errors import MissingError, UsageError

if TYPE_CHECKING:
    import torch
    from torch import nn

    from atopipe.ato.execution import Forward

VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
SILENCE = timedelta(minutes=30)  # after which a process that does not answer is given up
PATIENCE_S = 3.0  # in which rank 0, or the process that knows more, speaks first
SPOKEN = "atopipe/spoken"
LOST = "a process of this training job died or was stopped: what is complete stays usable, run the same command again"


class ProcessLostError(MissingError):
    """The job cannot go on without the process that is gone."""


@dataclass(frozen=True)
class Job:
    """This process's number among all `size` of the job, and among the `local_size` on this machine."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1

    def check_batch(self, batch_size: int) -> None:
        """Raises UsageError unless every process gets the same number of images, at least 2."""
        if batch_size % self.size or batch_size < 2 * self.size:
            raise UsageError(
                f"--batch-size is {batch_size}, but must be divisible by the {self.size} processes of this job, "
                "with 2 images or more for each"
            )


def this_job() -> Job:
    """As the launcher tells in the environment; a job of one process where there is no launcher."""
    if not all(name in os.environ for name in VARIABLES):
        return Job()
    return Job(*(int(os.environ[name]) for name in VARIABLES[:4]))


@contextmanager
def together(device: "torch.device") -> Iterator[None]:
    """While active, the processes of the job can talk: through NCCL between GPUs, through gloo between CPUs.

    Raises ProcessLostError when one of them is gone, or the launcher ends this one because another is.
    """
    import torch
    from torch import distributed as dist

    before = signal.signal(signal.SIGTERM, _stop)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    try:
        dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", timeout=SILENCE)
        yield
        dist.destroy_process_group()
    except RuntimeError as error:
        if _is_loss(error):
            raise ProcessLostError(LOST) from error
        raise
    finally:
        signal.signal(signal.SIGTERM, before)


def _stop(number: int, frame: object) -> NoReturn:
    raise ProcessLostError(LOST)


def _is_loss(error: RuntimeError) -> bool:
    from torch import distributed as dist

    return isinstance(error, dist.DistError) or any(word in str(error) for word in ("gloo", "NCCL"))


def replicated(model: "nn.Module") -> "Forward":
    """The network with its gradients averaged over all processes, each of which starts from the first one's weights."""
    from torch.nn.parallel import DistributedDataParallel

    return DistributedDataParallel(model)


def agreed(answers: Sequence[bool]) -> list[bool]:
    """The first process's answers, in every process."""
    import torch

    from atopipe.ato import replicas

    votes = torch.tensor([int(answer) for answer in answers])
    replicas.agree(votes)
    return [bool(vote) for vote in votes]


def shared(content: bytes | None) -> bytes:
    """The first process's bytes, in every process; none are no bytes."""
    import torch

    from atopipe.ato import replicas

    size = torch.tensor(len(content or b""))
    replicas.agree(size)
    if not size:
        return b""
    carrier = torch.frombuffer(bytearray(content or bytes(int(size))), dtype=torch.uint8)
    replicas.agree(carrier)
    return carrier.numpy().tobytes()


def least(value: int) -> int:
    """The smallest of the values that the processes have, while they are together."""
    import torch
    from torch import distributed as dist

    if not (dist.is_available() and dist.is_initialized()):
        return value
    smallest = torch.tensor(value)
    dist.all_reduce(smallest, op=dist.ReduceOp.MIN)
    return int(smallest)


def may_speak() -> bool:
    """Whether this process is the one that tells why the job ended; only one does.

    Rank 0 where it knows; another one where rank 0 does not, or is gone.
    """
    job = this_job()
    if job.size == 1:
        return True
    from torch.distributed import TCPStore  # type: ignore[attr-defined]  # public, but not in the list

    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    try:
        store = TCPStore(address, port, is_master=False, timeout=timedelta(seconds=PATIENCE_S))
        end = time.monotonic() + (PATIENCE_S if job.rank else 0)
        while time.monotonic() < end and not store.check([SPOKEN]):
            time.sleep(0.05)
        return bool(store.add(SPOKEN, 1) == 1)
    except RuntimeError:  # the launcher is gone as well
        return True
