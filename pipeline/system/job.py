"""One training job of several processes, as torchrun or srun start them: who this process is."""

import os
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta

from atopipe.pipeline.system.errors import UsageError

VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
FIRST_PORT, PORTS = 20_000, 20_000

PATIENCE_S = 3.0  # in which rank 0, or the process that knows more, speaks first
SPOKEN = "atopipe/spoken"


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
    """As torchrun or Slurm's srun tell in the environment; a job of one process where neither does."""
    if started_by_slurm() and "RANK" not in os.environ:
        os.environ.update(_of_slurm(os.environ))  # where torch looks for them
    if not all(name in os.environ for name in VARIABLES):
        return Job()
    return Job(*(int(os.environ[name]) for name in VARIABLES[:4]))


def started_by_slurm() -> bool:
    """Whether srun started this process as one of several; the script of a batch job is a step of one."""
    return int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1


def _of_slurm(given: Mapping[str, str]) -> dict[str, str]:
    """torchrun's variables from Slurm's; MASTER_ADDR and MASTER_PORT of the user's are kept."""
    port = FIRST_PORT + int(given.get("SLURM_JOB_ID", "0")) % PORTS  # two jobs on a node rarely share one
    tasks = tasks_per_node(given.get("SLURM_STEP_TASKS_PER_NODE", given["SLURM_STEP_NUM_TASKS"]))
    found = {
        "RANK": given["SLURM_PROCID"],
        "WORLD_SIZE": given["SLURM_STEP_NUM_TASKS"],
        "LOCAL_RANK": given["SLURM_LOCALID"],
        "LOCAL_WORLD_SIZE": str(tasks[int(given.get("SLURM_NODEID", "0"))]),
        "MASTER_ADDR": first_node(given.get("SLURM_STEP_NODELIST", "localhost")),
        "MASTER_PORT": str(port),
    }
    return {name: given.get(name, value) for name, value in found.items()}


def tasks_per_node(text: str) -> list[int]:
    """`4(x2),3` -> [4, 4, 3], as Slurm writes it."""
    parts = re.findall(r"(\d+)(?:\(x(\d+)\))?", text)
    return [int(count) for count, times in parts for _ in range(int(times or 1))]


def first_node(text: str) -> str:
    """`gpu[003-005,9],login` -> `gpu003`, as Slurm writes lists of nodes."""
    found = re.match(r"([^\[,]+)(?:\[(\d+))?([^\],]*)", text)
    return f"{found[1]}{found[2] or ''}" if found else text


def all_reduce_min(value: int) -> int:
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

    Rank 0 where it knows; another one where rank 0 does not, or is gone. (The `record` of torch's launcher would show
    an expected error as a traceback, and leave every process to print its own.) The others wait for rank 0, whose
    launcher ends it as soon as one of them has left.
    """
    job = this_job()
    if job.size == 1:
        return True
    from torch.distributed import TCPStore  # type: ignore[attr-defined]  # public, but not in the list

    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    try:
        store = TCPStore(address, port, is_master=False, timeout=timedelta(seconds=PATIENCE_S))
        end = time.monotonic() + (PATIENCE_S if job.rank else 0)
        while time.monotonic() < end and not store.check([SPOKEN]):
            time.sleep(0.05)
        return bool(store.add(SPOKEN, 1) == 1)
    except RuntimeError:  # the launcher is gone as well
        return True
