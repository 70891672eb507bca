"""Real command lines on a tiny network, to be killed and damaged: what the tests and the soak share."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from atopipe.pipeline.rundir.directory import RunDirectory
from atopipe.pipeline.rundir.verify import verify
from atopipe.pipeline.stages import STAGES

NET = """
from torch import nn

def net(num_classes):
    def block(i, o):
        return nn.Sequential(nn.Conv2d(i, o, 3, padding=1, stride=2, bias=False), nn.BatchNorm2d(o), nn.ReLU())
    head = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, num_classes)
    return nn.Sequential(block(3, 16), block(16, 16), *head)
"""
INTERVAL_MINUTES = 0.02
CONFIG = f"""
model: tiny_for_faults:net
target_flops: 0.6
recipe: {{epochs: 6, batch_size: 32, align: 1}}
validation: {{latency_s: 0.1}}
preflight: false
checkpoint_minutes: {INTERVAL_MINUTES}
threads: 1
device: cpu
"""
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM")
EXIT_CODES = frozenset({0, 2, 3, 4, 5, 6, 130})  # 1 is a defect


@dataclass(frozen=True)
class Kill:
    """What a SIGKILL after so many `seconds` hit.

    `stage`: the one that was running, "" before and after all; `lost_s`: seconds of training since its last checkpoint,
    or since it began, None where it was not training; `finished`: the process ended before.
    """

    seconds: float
    stage: str
    lost_s: float | None
    finished: bool


def furnish(folder: Path) -> Path:
    """The network and its configuration in a folder."""
    (folder / "tiny_for_faults.py").write_text(NET)
    (folder / "config.yaml").write_text(CONFIG)
    return folder


def start(folder: Path, output: str) -> "subprocess.Popen[str]":
    """The whole pipeline in a separate process."""
    command = [sys.executable, "-m", "atopipe.pipeline", "run", "--config", "config.yaml", "--output", output]
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(folder: Path, output: str) -> float:
    """Runs to the end, and returns the seconds it took."""
    begun = time.monotonic()
    process = start(folder, output)
    said, _ = process.communicate(timeout=600)
    if process.returncode not in (0, 3, 4):  # of so short a measurement the gates may say anything
        raise AssertionError(f"exit code {process.returncode}: {said}")
    return time.monotonic() - begun


def wait_for(process: "subprocess.Popen[str]", run: Path, event: str, **fields: str) -> None:
    """Until the run has come to an event of that kind with those values."""
    while not any(e["event"] == event and fields.items() <= e.items() for e in _events(run)):
        assert process.poll() is None, "it ended before"
        time.sleep(0.02)


def kill_after(folder: Path, output: str, seconds: float) -> Kill:
    """Starts the chain and kills it after so many seconds."""
    process = start(folder, output)
    try:
        process.communicate(timeout=seconds)
        return Kill(seconds, "", None, finished=True)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        killed_at = time.time()
        process.communicate()
    events = _events(folder / output)
    stage = _running(events)
    return Kill(seconds, stage, _lost(events, killed_at), finished=False)


def _events(run: Path) -> list[dict[str, object]]:
    file = run / "events.jsonl"
    text = file.read_text() if file.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def _running(events: list[dict[str, object]]) -> str:
    last = next((event for event in reversed(events) if str(event["event"]).startswith("stage")), None)
    return str(last["stage"]) if last and last["event"] == "stage started" else ""


def _lost(events: list[dict[str, object]], killed_at: float) -> float | None:
    """Seconds from the last checkpoint, or from the start of the training, to the kill; None outside of it."""
    last = [event for event in events if event["event"] in ("checkpoint", "training started", "stage complete")]
    if not last or last[-1]["event"] == "stage complete":
        return None
    return killed_at - float(str(last[-1]["time"]))


def digests(run: Path) -> dict[str, str]:
    """File -> SHA-256 of what every run of this configuration must leave alike."""
    wanted = {"train": ("weights.safetensors", "masks.safetensors"), "shrink": ("weights.safetensors",)}
    wanted["export"] = ("model.onnx", "dense.onnx")
    results = {stage: json.loads((run / "stages" / stage / "result.json").read_text()) for stage in wanted}
    return {f"{s}/{name}": results[s]["artifacts"][name] for s, names in wanted.items() for name in names}


def problems(run: Path) -> list[str]:
    """What `atopipe verify` says."""
    return [problem.as_text() for problem in verify(RunDirectory.open(run), STAGES)]


def flip_bit(path: Path, draw: random.Random) -> None:
    content = bytearray(path.read_bytes())
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    path.write_bytes(content)


def committed(run: Path) -> list[str]:
    """The files of a finished run that its manifest answers for, and itself."""
    growing = {"events.jsonl", "inputs.json", ".lock"}
    names = (path.relative_to(run).as_posix() for path in run.rglob("*") if path.is_file())
    return sorted(name for name in names if name not in growing)


@contextmanager
def working_in(folder: Path) -> Iterator[None]:
    """While active, this process works in `folder`, from where it also imports."""
    before, path = Path.cwd(), sys.path.copy()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)
        sys.path[:] = path


def mutated(content: bytes, draw: random.Random) -> bytes:
    """A few bytes changed, dropped or doubled."""
    changed = bytearray(content)
    for _ in range(draw.randint(1, 8)):
        place = draw.randrange(len(changed)) if changed else 0
        kind = draw.choice(("set", "cut", "double"))
        if kind == "set" and changed:
            changed[place] = draw.randrange(256)
        elif kind == "cut":
            del changed[place : place + draw.randint(1, 40)]
        else:
            changed[place:place] = changed[place : place + draw.randint(1, 40)]
    return bytes(changed)
