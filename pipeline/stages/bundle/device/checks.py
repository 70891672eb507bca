"""Is the bundle whole, does this machine compute what was recorded, and how fast?"""

from __future__ import annotations

import hashlib
import json
import platform
import time
from pathlib import Path
from typing import Any

import network
import numpy as np
import onnxruntime as ort
from network import FULL, model_file, open_model, read_labels, read_settings, run, variants
from pictures import Failed, Floats, Settings, normalise, preprocess
from PIL import Image

TOLERANCES = {FULL: 1e-4, "fp16": 0.02, "int8": 0.25}  # of the logits' deviation; less exact kernels round differently
PHOTO_TOLERANCE = 2.5 / 255  # of a pixel: another version of pillow may round differently
DISTURBED = 1.05  # a run that took this many times its processor time waited for another process
PROGRAMS = ("infer.py", "checks.py", "network.py", "pictures.py")
FILES = (*PROGRAMS, "labels.txt", "preprocess.json", "samples/samples.npz")


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def selftest(threads: int) -> Settings:
    """Files, preprocessing and logits against what was recorded; raises Failed at the first that differs."""
    check_sums()
    settings, sessions = read_settings(), {name: open_model(name, threads) for name in variants()}
    for name, session in sessions.items():
        check_metadata(session.get_modelmeta().custom_metadata_map, model_file(name).name, settings)
    with np.load(network.HERE / "samples" / "samples.npz") as samples:
        pixels, images = samples["pixels"], samples["images"]
        wanted = {name: samples["logits" if name == FULL else f"logits_{name}"] for name in sessions}
        photo = preprocess(Image.fromarray(samples["photo"]), settings)
        photo_off = float(np.abs((photo - samples["photo_input"]) * np.asarray(settings["std"])[:, None, None]).max())
    if np.abs(normalise(pixels, settings) - images).max() > 1e-6:
        raise Failed("the pixels of the samples do not give the recorded input: mean or std is wrong")
    if photo_off > PHOTO_TOLERANCE:
        raise Failed(f"a photo is not resized and cropped as recorded: a pixel differs by {255 * photo_off:.1f} of 255")
    off = {name: difference(name, session, images, wanted[name]) for name, session in sessions.items()}
    found: Settings = {"passed": True, "samples": len(images), "max_abs_diff": off[FULL], "photo_max_diff": photo_off}
    return {**found, "variants": off}


def check_sums() -> None:
    """Raises Failed where SHA256SUMS does not name every file of the bundle with its digest."""
    lines = (line.partition("  ") for line in (network.HERE / "SHA256SUMS").read_text(encoding="utf-8").splitlines())
    digests = {name: digest for digest, _, name in lines}
    here = {*FILES, *(model_file(variant).name for variant in variants())}
    for name in sorted(here | digests.keys()):
        if name not in digests or not (network.HERE / name).is_file() or sha256(network.HERE / name) != digests[name]:
            raise Failed(f"{printable(name)} is missing or changed: unpack the bundle again")


def printable(text: str) -> str:
    """What moves a terminal's cursor or cannot be encoded is written as an escape."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def check_metadata(stored: dict[str, str], file: str, settings: Settings) -> None:
    """Raises Failed if the labels or the preprocessing in a model are not those beside it."""
    if json.loads(stored["labels"]) != read_labels():
        raise Failed(f"labels.txt does not hold the labels that are stored in {file}")
    if json.loads(stored["preprocessing"]) != settings:
        raise Failed(f"preprocess.json does not hold the preprocessing that is stored in {file}")


def difference(variant: str, session: ort.InferenceSession, images: Floats, wanted: Floats) -> float:
    """How far a logit is off, one image at a time and all at once; raises Failed if it is too far."""
    off = max(float(np.abs(run(session, images[:size]) - wanted[:size]).max()) for size in (1, len(images)))
    limit = TOLERANCES[variant] * float(wanted.std())
    if not off <= limit:  # a logit that is not a number fails as well
        found = f"a logit of {model_file(variant).name} differs by {off:.3g}, but at most {limit:.3g} is allowed"
        raise Failed(f"{found}: this machine computes different results")
    return off


def bench(variant: str, threads: int, seconds: float) -> Settings:
    """Load time, and the latency after warm-up; without runs which lost the processor, where its clock can tell."""
    start = time.perf_counter()
    session = open_model(variant, threads)
    load_ms = 1e3 * (time.perf_counter() - start)
    with np.load(network.HERE / "samples" / "samples.npz") as samples:
        images = samples["images"]
    kind: Any = "thread_time" if threads == 1 else "process_time"
    clock = getattr(time, kind) if time.get_clock_info(kind).resolution <= 1e-4 else time.perf_counter
    rows, begin = list[tuple[float, float]](), time.perf_counter()
    while len(rows) < 10 or time.perf_counter() - begin < 1.2 * seconds:
        wall, cpu = time.perf_counter(), clock()
        run(session, images[len(rows) % len(images)][None])
        rows.append((time.perf_counter() - wall, clock() - cpu))
    counted = np.array(rows[len(rows) // 6 :])  # the first sixth of the time is warm-up
    kept = counted[counted[:, 0] <= DISTURBED * counted[:, 1], 0]
    if not len(kept):
        raise Failed("every run was preempted: stop other programs and try again")
    result: Settings = {"p50_ms": 1e3 * float(np.median(kept)), "runs": len(kept), "kept": len(kept) / len(counted)}
    if len(kept) >= 64:  # fewer do not know the tail
        result["p90_ms"] = 1e3 * float(np.quantile(kept, 0.9))
    return {**result, "load_ms": load_ms}


def device(threads: int) -> Settings:
    return {
        "cpu": cpu_name(),
        "machine": platform.machine(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "onnxruntime": ort.__version__,
        "threads": threads,
    }


def cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text("utf-8", "replace").splitlines() if info.exists() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith(("model name", "Model"))]
    return named[0] if named else platform.processor() or platform.machine()
