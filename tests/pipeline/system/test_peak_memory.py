"""The largest resident memory is this process's own, and that of one stage."""

import subprocess
import sys

import numpy as np
import pytest

from atopipe.pipeline.system.machine import CLEAR_REFS, peak_memory_bytes, reset_peak_memory

LARGE = 400_000_000


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux hands the parent's peak on")
def test_the_parents_memory_does_not_count() -> None:
    large = np.ones(LARGE, np.uint8)
    code = "from atopipe.pipeline.system.machine import peak_memory_bytes; print(peak_memory_bytes())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert int(done.stdout) < LARGE < peak_memory_bytes()
    assert large.all()


@pytest.mark.skipif(not CLEAR_REFS.exists(), reason="the kernel does not let a process restart the measurement")
def test_a_stage_begins_with_what_is_in_use() -> None:
    large = np.ones(LARGE, np.uint8)
    before = peak_memory_bytes()
    del large
    reset_peak_memory()
    assert peak_memory_bytes() < before - LARGE // 2
