"""What an ONNX model costs besides its latency: bytes of its file, time to load it, memory while it runs.

Memory is that of a process of its own, so that neither the other model nor what the caller has loaded counts.
"""

import json
import re
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from atopipe.validate.session import SessionError, open_session

SECONDS = 300  # for one process
RUNS = 3
REFUSED = 3  # the exit code of a process that says in one sentence what is wrong with the model


@dataclass(frozen=True)
class Footprint:
    """`memory_bytes`: what loading the model and running one image added to the peak of a process of its own."""

    file_bytes: int
    load_ms: float
    memory_bytes: int


def measure_footprint(model: Path, *, threads: int = 1) -> Footprint:
    """Load and run the model on one image in a process of its own, so that a crash of the runtime ends only that.

    Raises:
        SessionError: the file is no model that can be loaded and run there.
    """
    command = [sys.executable, "-P", "-m", "atopipe.validate.footprint", str(model), str(threads)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise SessionError(f"'{model}' has not answered one image within {SECONDS:g} s") from None
    if done.returncode == REFUSED:
        raise SessionError(done.stderr.strip())
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or [f"it ended with {done.returncode}"])[-1]
        died = f"ONNX Runtime crashed (signal {-done.returncode})" if done.returncode < 0 else last
        raise SessionError(f"'{model}' cannot be run in a process of its own: {died}")
    return Footprint(**json.loads(done.stdout))


def _here(model: Path, threads: int) -> Footprint:
    before = _peak_bytes()
    start = time.perf_counter()
    session = open_session(model, threads=threads)
    load_ms = 1e3 * (time.perf_counter() - start)
    images = np.zeros((1, *session.input_shape()), np.float32)
    for _ in range(RUNS):
        session.run(images)
    return Footprint(model.stat().st_size, load_ms, _peak_bytes() - before)


def _peak_bytes() -> int:
    """Of this process alone: `ru_maxrss` on Linux starts at what the process that started this one had in use."""
    status = Path("/proc/self/status")
    if found := re.search(r"VmHWM:\s+(\d+) kB", status.read_text() if status.exists() else ""):
        return int(found[1]) * 1024
    if sys.platform == "win32":
        import psutil

        return int(psutil.Process().memory_info().peak_wset)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _main(model: Path, threads: int) -> int:
    try:
        sys.stdout.write(json.dumps(asdict(_here(model, threads))))
    except SessionError as error:
        sys.stderr.write(str(error))
        return REFUSED
    return 0


if __name__ == "__main__":
    sys.exit(_main(Path(sys.argv[1]), int(sys.argv[2])))
