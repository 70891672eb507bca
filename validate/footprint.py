"""What an ONNX model costs besides its latency: bytes of its file, time to load it, memory while it runs.

Memory is measured in a separate process, so that neither the other model nor what the caller has loaded counts.
"""

import json
import re
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from atopipe.validate.session import CPU, ProviderError, SessionError, open_session

SECONDS = 300  # for one process
RUNS = 3
REFUSALS = {3: SessionError, 4: ProviderError}  # exit codes of a process that says in one sentence what is wrong


@dataclass(frozen=True)
class Footprint:
    """`memory_bytes`: what loading the model and running one image added to the peak of a separate process."""

    file_bytes: int
    load_ms: float
    memory_bytes: int


def measure_footprint(model: Path, *, provider: str = CPU, threads: int = 1) -> Footprint:
    """Load and run the model on one image in a separate process, so that a crash of the runtime ends only that.

    Raises:
        SessionError: the file is no model that can be loaded and run there.
        ProviderError: the provider cannot be used here.
    """
    command = [sys.executable, "-P", "-m", "atopipe.validate.footprint", str(model), provider, str(threads)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise SessionError(f"'{model}' did not process one image within {SECONDS:g} s") from None
    last = (done.stderr.strip().splitlines() or [f"it ended with {done.returncode}"])[-1]  # logs may stand before it
    if done.returncode in REFUSALS:
        raise REFUSALS[done.returncode](last)
    if done.returncode != 0:
        died = f"ONNX Runtime crashed (signal {-done.returncode})" if done.returncode < 0 else last
        raise SessionError(f"'{model}' cannot be run in a separate process: {died}")
    return Footprint(**json.loads(done.stdout))


def _here(model: Path, provider: str, threads: int) -> Footprint:
    before = _peak_bytes()
    start = time.perf_counter()
    session = open_session(model, provider=provider, threads=threads)
    load_ms = 1e3 * (time.perf_counter() - start)
    # Random, as those that are timed: a loop in the model may end for an image of zeros only.
    images = np.random.default_rng(0).normal(size=(1, *session.input_shape())).astype(np.float32)
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


def _main(model: Path, provider: str, threads: int) -> int:
    try:
        sys.stdout.write(json.dumps(asdict(_here(model, provider, threads))))
    except tuple(REFUSALS.values()) as error:
        sys.stderr.write(str(error))
        return next(code for code, kind in REFUSALS.items() if isinstance(error, kind))
    return 0


if __name__ == "__main__":
    sys.exit(_main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])))
