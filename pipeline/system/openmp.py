"""How the threads of OpenMP wait for each other, which its library reads when it is loaded."""

import os

CHOSEN_BY = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
SPINS = 1000  # some microseconds: threads that are at work arrive within them, and waking a sleeper takes longer


def wait_without_spinning() -> None:
    """Lets threads sleep at barriers after a moment, unless the user has chosen; call it before torch is imported.

    By default they spin for long, and take the processor from the thread they wait for wherever another program or a
    quota leaves fewer processors than threads. Without any spinning a step takes a fifth longer on a quiet machine:
    `benchmarks/busy_training.py` measures both.
    """
    if not any(name in os.environ for name in CHOSEN_BY):
        os.environ["GOMP_SPINCOUNT"] = str(SPINS)
