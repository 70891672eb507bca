"""`python -m atopipe.pipeline.sweep.executors.with_parent PID COMMAND...`: the command, which ends with its parent.

The kernel sends SIGTERM to the process when the parent PID is gone, so that a run whose scheduler was killed keeps a
checkpoint and lets go of its directory. Only Linux has this (prctl(2), PR_SET_PDEATHSIG); elsewhere the command simply
runs. The setting survives `exec`, so no process is added.
"""

import ctypes
import os
import signal
import sys
from collections.abc import Sequence

PR_SET_PDEATHSIG = 1


def main(arguments: Sequence[str]) -> None:
    """Becomes the command."""
    parent, command = int(arguments[0]), list(arguments[1:])
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # it died before
            sys.exit(128 + signal.SIGTERM)
    os.execvp(command[0], command)  # noqa: S606


if __name__ == "__main__":
    main(sys.argv[1:])
