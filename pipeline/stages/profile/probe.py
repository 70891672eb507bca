"""Time a pack of networks on this device. Needs numpy and onnxruntime, nothing else; Python 3.9, ONNX Runtime 1.14.

python probe.py PACK                     writes PACK/latency.json: train for this device with --latency-table
python probe.py PACK --threads 2 --batch 8 --provider cuda

The networks have no weights, which latency does not depend on. Every one is run by ONNX Runtime's own profiler, which
tells what each layer takes, and without it, for what the whole takes: several times in turns, and the best time counts,
so that what else runs on the device matters little.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import platform
import sys
import tempfile
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

FORMAT = 2
NETWORKS = "networks.zip"
PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider", "tensorrt": "TensorrtExecutionProvider"}
WARM_RUNS, RUNS = 2, 5  # of a network in a round, and again for its profile
SECONDS = 0.04  # of a network in a round, where it is fast
ROUNDS, MOST_ROUNDS, ENOUGH = 2, 9, 50.0  # all networks are gone through twice, and again within so many seconds


class Failed(Exception):
    """The pack cannot be timed here. One sentence."""


def session(model: bytes, provider: str, threads: int, profile: str | None = None) -> Any:
    """Open the model on exactly this provider."""
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 4
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if profile is not None:
        options.enable_profiling, options.profile_file_prefix = True, profile
    if provider not in ort.get_available_providers():
        raise Failed(f"provider '{provider}' is not in this ONNX Runtime: choose another --provider")
    opened = ort.InferenceSession(model, options, providers=[provider])
    if opened.get_providers()[0] != provider:
        raise Failed(f"provider '{provider}' cannot be used here: repair its drivers, or choose another --provider")
    return opened


def clock(provider: str, threads: int) -> Any:
    """Processor time of the one thread that works, where one does; wall time elsewhere."""
    exact = time.get_clock_info("thread_time").resolution < 1e-4
    return time.thread_time if threads == 1 and provider == PROVIDERS["cpu"] and exact else time.perf_counter


def timed(opened: Any, images: Any, now: Any) -> float:
    """Milliseconds of the fastest run but one: a coarse clock makes single ones too fast."""
    feed = {opened.get_inputs()[0].name: images}
    for _ in range(WARM_RUNS):
        opened.run(None, feed)
    times: list[float] = []
    end = time.perf_counter() + SECONDS
    while len(times) < RUNS or (time.perf_counter() < end and len(times) < 40 * RUNS):
        start = now()
        opened.run(None, feed)
        times.append(1e3 * (now() - start))
    return sorted(times)[1]


def profiled(model: bytes, provider: str, threads: int, images: Any, layers: dict[str, str]) -> dict[str, list[float]]:
    """Of each layer, milliseconds and the number of operations: its own, and those of no layer that come before it.

    What comes before a layer brings its input into the layout that it reads. What comes after the last is the last's.
    """
    with tempfile.TemporaryDirectory() as folder:
        opened = session(model, provider, threads, str(Path(folder) / "profile"))
        for _ in range(WARM_RUNS + RUNS):
            opened.run(None, {opened.get_inputs()[0].name: images})
        events = json.loads(Path(opened.end_profiling()).read_text(encoding="utf-8"))
    times: dict[str, list[float]] = {}  # in the order of execution
    for event in sorted((e for e in events if e.get("cat") == "Node"), key=lambda e: e["ts"]):
        if event["name"].endswith("_kernel_time"):
            times.setdefault(event["name"][: -len("_kernel_time")], []).append(event["dur"] / 1e3)
    found: dict[str, list[float]] = {}
    waiting, last = [0.0, 0], ""
    for name, values in times.items():
        waiting = [waiting[0] + min(values[WARM_RUNS:]), waiting[1] + 1]
        layer = layers.get(name) or layers.get(name.replace("_nchwc", "").replace("_fused", ""))
        if layer is not None:
            found[layer], waiting, last = _sum(found.get(layer, [0.0, 0]), waiting), [0.0, 0], layer
    if last:
        found[last] = _sum(found[last], waiting)
    return found


def _sum(first: list[float], second: list[float]) -> list[float]:
    return [a + b for a, b in zip(first, second)]


class Timing:
    """What one network took in every round so far."""

    def __init__(self, file: str, model: bytes) -> None:
        self.file, self.model = file, model
        self.ms: list[float] = []
        self.layers: dict[str, list[float]] = {}

    def add(self, provider: str, threads: int, images: Any, layers: dict[str, str]) -> None:
        self.ms.append(timed(session(self.model, provider, threads), images, clock(provider, threads)))
        for name, (ms, operations) in profiled(self.model, provider, threads, images, layers).items():
            best = min(ms, self.layers[name][0]) if name in self.layers else ms
            self.layers[name] = [best, operations]

    def entry(self) -> dict[str, Any]:
        """As latency.json has it; `spread`: by how much the rounds differ, as a fraction."""
        best = min(self.ms)
        spread = max(self.ms) / best - 1
        layers = {name: ms for name, (ms, _) in self.layers.items()}
        operations = {name: int(count) for name, (_, count) in self.layers.items()}
        return {"file": self.file, "ms": best, "spread": spread, "layers": layers, "operations": operations}


def probe(folder: Path, provider: str, threads: int, batch: int, said: Any = None) -> dict[str, Any]:
    """Everything that was measured, as latency.json has it; `said` is told the fraction that is done."""
    start = time.perf_counter()
    pack, models = read_pack(folder)
    shape = (batch, *pack["input"])
    images = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    timings = [Timing(network["file"], models[network["file"]]) for network in pack["networks"]]
    for turn in range(MOST_ROUNDS):
        if turn >= ROUNDS and (turn + 1) * (time.perf_counter() - start) > turn * ENOUGH:
            break
        for number, timing in enumerate(timings):
            timing.add(provider, threads, images, pack["layers"])
            if said is not None:
                said(min(1.0, max((turn + number / len(timings)) / MOST_ROUNDS, 0.0)))
    return {
        "format": FORMAT,
        "pack": pack["digest"],
        "runtime": ort.__version__,
        "processor": processor(),
        "provider": provider,
        "threads": threads,
        "batch": batch,
        "input": list(pack["input"]),
        "graph_level": "all",
        "seconds": time.perf_counter() - start,
        "networks": [timing.entry() for timing in timings],
    }


def read_pack(folder: Path) -> tuple[dict[str, Any], dict[str, bytes]]:
    """pack.json, and the networks by their files; Failed where they are not as they were written."""
    try:
        pack: dict[str, Any] = json.loads((folder / "pack.json").read_text(encoding="utf-8"))
        if pack.get("format") != FORMAT:
            raise Failed(
                f"'{folder}' is a pack of another version: make it again with the atopipe that reads the table"
            )
        with zipfile.ZipFile(folder / NETWORKS) as archive:
            models = {network["file"]: archive.read(network["file"]) for network in pack["networks"]}
        for network in pack["networks"]:
            if hashlib.sha256(models[network["file"]]).hexdigest() != network["sha256"]:
                raise Failed(f"'{network['file']}' in '{folder / NETWORKS}' has changed: make the pack again")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, zipfile.BadZipFile) as error:
        raise Failed(
            f"'{folder}' is no pack of networks: give the folder that 'atopipe profile --pack' wrote"
        ) from error
    return pack, models


def sealed(found: dict[str, Any]) -> str:
    """The file's text: JSON with its own digest as the last value, so that a part or a change of it shows."""
    canonical = json.dumps(found, sort_keys=True, separators=(",", ":"))
    digest = hashlib.sha256(canonical.encode()).hexdigest()
    return json.dumps({**found, "sha256": digest}, indent=2, allow_nan=False) + "\n"


def processor() -> str:
    """Model and instruction sets of the processor, as far as the system tells."""
    lines: list[str] = []
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    named = {line.partition(":")[0].strip(): line.partition(":")[2].strip() for line in reversed(lines)}
    flags = [flag for flag in ("avx2", "avx512f", "avx512_vnni", "asimd") if flag in named.get("flags", "").split()]
    model = named.get("model name") or named.get("Model") or platform.processor() or platform.machine()
    return ", ".join([model, *flags])


def main() -> int:
    parser = argparse.ArgumentParser(description="Time a pack of networks on this device.")
    parser.add_argument("pack", type=Path)
    parser.add_argument("--provider", choices=sorted(PROVIDERS), default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, default=1)
    options = parser.parse_args()
    try:
        found = probe(options.pack, PROVIDERS[options.provider], options.threads, options.batch)
        target = options.pack / "latency.json"
        target.write_text(sealed(found), encoding="utf-8")
    except (Failed, OSError, ValueError) as error:
        print(f"probe.py: {error}", file=sys.stderr)
        return 1
    dense = found["networks"][0]["ms"]
    print(f"{target}: {len(found['networks'])} networks in {found['seconds']:.0f} s, dense {dense:.3g} ms")
    return 0


if __name__ == "__main__":
    sys.exit(main())
