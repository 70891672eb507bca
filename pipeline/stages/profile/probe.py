"""Time a pack of networks on this device. Needs numpy and onnxruntime, nothing else; Python 3.9, ONNX Runtime 1.14.

python probe.py PACK                     writes PACK/latency.json: train for this device with --latency-table
python probe.py PACK --threads 2 --batch 8 --provider cuda

The networks have no weights, which latency does not depend on. Every one is run by ONNX Runtime's own profiler, which
tells what each layer takes, and without it, for what the whole takes. With one thread on a processor, the processor
time of the thread counts, so that what else runs on the device matters little.
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
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

FORMAT = 1
PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider", "tensorrt": "TensorrtExecutionProvider"}
WARM_RUNS, LEAST_RUNS, SECONDS = 3, 9, 0.25  # per network, and again for its profile
QUIET = 0.3  # the quantile of a layer's times that is taken: those of undisturbed runs
ROUNDS = 3  # times that all networks are gone through: a busy minute then spoils a third of each one's runs


class Failed(Exception):
    """The pack cannot be timed here. One sentence."""


def session(model: Path, provider: str, threads: int, profile: str | None = None) -> Any:
    """Open the model on exactly this provider."""
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 4
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if profile is not None:
        options.enable_profiling, options.profile_file_prefix = True, profile
    if provider not in ort.get_available_providers():
        raise Failed(f"provider '{provider}' is not in this ONNX Runtime: choose another --provider")
    opened = ort.InferenceSession(str(model), options, providers=[provider])
    if opened.get_providers()[0] != provider:
        raise Failed(f"provider '{provider}' cannot be used here: repair its drivers, or choose another --provider")
    return opened


def clock(provider: str, threads: int) -> Any:
    """Processor time of the one thread that works, where one does; wall time elsewhere."""
    exact = time.get_clock_info("thread_time").resolution < 1e-4
    return time.thread_time if threads == 1 and provider == PROVIDERS["cpu"] and exact else time.perf_counter


def timed(opened: Any, images: Any, now: Any) -> list[float]:
    """Milliseconds of single runs."""
    feed = {opened.get_inputs()[0].name: images}
    for _ in range(WARM_RUNS):
        opened.run(None, feed)
    times: list[float] = []
    end = time.perf_counter() + SECONDS
    while len(times) < LEAST_RUNS or (time.perf_counter() < end and len(times) < 20 * LEAST_RUNS):
        start = now()
        opened.run(None, feed)
        times.append(1e3 * (now() - start))
    return times


def profiled(
    model: Path,
    provider: str,
    threads: int,
    images: Any,
    layers: dict[str, str],
) -> tuple[dict[str, float], float]:
    """Milliseconds of each layer, and of everything that belongs to none."""
    with tempfile.TemporaryDirectory() as folder:
        opened = session(model, provider, threads, str(Path(folder) / "profile"))
        for _ in range(WARM_RUNS + LEAST_RUNS):
            opened.run(None, {opened.get_inputs()[0].name: images})
        events = json.loads(Path(opened.end_profiling()).read_text(encoding="utf-8"))
    times: dict[str, list[float]] = {}
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            times.setdefault(event["name"][: -len("_kernel_time")], []).append(event["dur"] / 1e3)
    by_layer: dict[str, float] = {}
    rest = 0.0
    for name, values in times.items():
        taken = float(np.quantile(values[WARM_RUNS:], QUIET))
        layer = layers.get(name) or layers.get(name.replace("_nchwc", "").replace("_fused", ""))
        if layer is None:
            rest += taken
        else:
            by_layer[layer] = by_layer.get(layer, 0.0) + taken
    return by_layer, rest


def probe(folder: Path, provider: str, threads: int, batch: int) -> dict[str, Any]:
    """Everything that was measured, as latency.json has it."""
    start = time.perf_counter()
    pack = read_pack(folder)
    shape = (batch, *pack["input"])
    images = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    now = clock(provider, threads)
    files = [folder / network["file"] for network in pack["networks"]]
    found: list[dict[str, Any]] = [{"file": file.name, "ms": []} for file in files]
    for turn in range(ROUNDS):
        for file, entry in zip(files, found):
            entry["ms"] += timed(session(file, provider, threads), images, now)
            if turn == 0:
                entry["layers"], entry["rest"] = profiled(file, provider, threads, images, pack["layers"])
    for entry in found:
        entry["ms"] = float(np.median(entry["ms"]))
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
        "networks": found,
    }


def read_pack(folder: Path) -> dict[str, Any]:
    """pack.json, and the digest of all files of the pack; Failed where they are not as they were written."""
    try:
        pack: dict[str, Any] = json.loads((folder / "pack.json").read_text(encoding="utf-8"))
        for network in pack["networks"]:
            if hashlib.sha256((folder / network["file"]).read_bytes()).hexdigest() != network["sha256"]:
                raise Failed(f"'{folder / network['file']}' has changed: make the pack again")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Failed(
            f"'{folder}' is no pack of networks: give the folder that 'atopipe profile --pack' wrote"
        ) from error
    if pack.get("format") != FORMAT:
        raise Failed(f"'{folder}' is a pack of another version: make it again with the atopipe that reads the table")
    return pack


def processor() -> str:
    """Model and instruction sets of the processor, as far as the system tells."""
    lines: list[str] = []
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    named = {line.partition(":")[0].strip(): line.partition(":")[2].strip() for line in reversed(lines)}
    flags = [flag for flag in ("avx2", "avx512f", "avx512_vnni", "asimd") if flag in named.get("flags", "").split()]
    model = named.get("model name") or platform.processor() or platform.machine()
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
        target.write_text(json.dumps(found, indent=1), encoding="utf-8")
    except (Failed, OSError, ValueError) as error:
        print(f"probe.py: {error}", file=sys.stderr)
        return 1
    dense = found["networks"][0]["ms"]
    print(f"{target}: {len(found['networks'])} networks in {found['seconds']:.0f} s, dense {dense:.3g} ms")
    return 0


if __name__ == "__main__":
    sys.exit(main())
