"""How the threads of OpenMP wait for each other, which its library reads when it is loaded."""

import os

CHOSEN_BY = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")


def wait_without_spinning() -> None:
    """Lets threads sleep at barriers, unless the user has chosen; call it before anything imports torch.

    By default they spin, and take the processor from the thread they wait for wherever another program or a quota
    leaves fewer processors than threads: `benchmarks/busy_training.py` measures it.
    """
    if not any(name in os.environ for name in CHOSEN_BY):
        os.environ["GOMP_SPINCOUNT"] = "0"
