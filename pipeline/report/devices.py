"""What other machines measured of a run's model: the output of the bundle's `infer.py --bench --json`."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from atopipe.pipeline.config.schema import FULL
from atopipe.pipeline.rundir.directory import RunDirectory
from atopipe.pipeline.rundir.layout import DEVICES, file_of
from atopipe.pipeline.system.errors import MissingError, UsageError
from atopipe.pipeline.system.files import DamagedError, read_ordinary, write_json

KEPT = 0.8  # of a device's runs undisturbed, below which they decide nothing
FOR_ANOTHER_DEVICE = (
    "it is a promise for another device: run the bundle's infer.py --bench there, and add what it prints"
)


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class Host(_Part):
    """The machine that measured."""

    cpu: str
    machine: str
    system: str
    onnxruntime: str
    threads: Annotated[int, Field(ge=1)]


class Selftest(_Part):
    """The largest difference of a logit from the recorded ones, of fp32 and of each variant."""

    passed: bool
    max_abs_diff: Annotated[float, Field(ge=0)]
    variants: dict[str, float] = {}


class Bench(_Part):
    """The latency of one image: median of so many runs, which are the fraction `kept` of all."""

    p50_ms: Annotated[float, Field(gt=0)]
    runs: Annotated[int, Field(ge=1)]
    kept: Annotated[float, Field(gt=0, le=1)]


class Device(_Part):
    """What one machine found."""

    variant: str = FULL
    model_sha256: str
    device: Host
    selftest: Selftest
    bench: Bench

    def sentence(self) -> str:
        """One line for the summary."""
        host, threads = self.device, "1 thread" if self.device.threads == 1 else f"{self.device.threads} threads"
        variant = "" if self.variant == FULL else f"{self.variant}: "
        off = self.selftest.variants.get(self.variant, self.selftest.max_abs_diff)
        return (
            f"{variant}{self.bench.p50_ms:.3g} ms on {host.cpu} ({host.machine}, {threads}, "
            f"ONNX Runtime {host.onnxruntime}; median of {self.bench.runs} runs), logits differ by at most {off:.2g}"
        )


def add_device(run: RunDirectory, file: Path) -> None:
    """Keeps the measurements of `file` with the run; UsageError where they are none, or of another model."""
    try:
        device = _read(file)
    except OSError as error:
        raise MissingError(f"device file '{file}' cannot be read: {error.strerror}") from None
    except (ValueError, DamagedError):
        remedy = "give the output of 'python infer.py --bench --json' on the device"
        raise UsageError(f"device file '{file}' holds no measurements: {remedy}") from None
    if not device.selftest.passed:
        raise UsageError(
            f"device file '{file}' is of a bundle that failed its self-test: unpack the bundle again there"
        )
    delivered = _delivered(run, device.variant)
    if device.model_sha256 != delivered:
        raise UsageError(
            f"device file '{file}' belongs to another model ({device.model_sha256[:12]}, "
            f"this run's is {delivered[:12]}): measure with this run's bundle"
        )
    (run.root / DEVICES).mkdir(exist_ok=True)
    name = "".join(c if c.isalnum() else "-" for c in f"{device.device.cpu} {device.device.threads} {device.variant}")
    write_json(run.root / DEVICES / f"{name.lower()}.json", device.model_dump())


def decided(run: RunDirectory, gates: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The gates of a run; the promise for another device as it decides itself, where its measurements were added.

    It must be the device of the table, by processor, version of ONNX Runtime and threads, and have been undisturbed;
    its slowest time counts.
    """
    promised, target = run.config.latency_table is not None, run.config.target_latency
    if not promised or target is None or run.config.deployment.batch > 1:
        return list(gates)
    table = json.loads(run.stages.artifact("profile", "latency.json").read_text(encoding="utf-8"))
    made_by = [device for device in _devices(run) if device.variant == FULL and _is_of(device, table)]
    if not made_by:
        return list(gates)
    slowest = max(made_by, key=lambda device: device.bench.p50_ms)
    unit = table["networks"][0]["ms"] if target.is_fraction else 1.0
    value = slowest.bench.p50_ms / unit
    outcome, verb = ("pass", "is") if value <= target.value else ("fail", "is not")
    return [
        {
            "name": gate["name"],
            "value": value,
            "limit": gate["limit"],
            "outcome": outcome,
            "reason": f"{gate['name']} {value:.6g} on {slowest.device.cpu} {verb} {gate['limit']}",
        }
        if gate.get("inconclusive_because") == FOR_ANOTHER_DEVICE
        else gate
        for gate in gates
    ]


def _is_of(device: Device, table: dict[str, Any]) -> bool:
    """Whether the device is the one that the table was made on, and was free enough to say something."""
    host = device.device
    is_same = table["processor"].partition(", ")[0] == host.cpu and table["runtime"] == host.onnxruntime
    return bool(is_same and table["threads"] == host.threads and device.bench.kept >= KEPT)


def _devices(run: RunDirectory) -> Iterator[Device]:
    """Everything that was added, whole, and about the models as they are now."""
    return (found for found in _added(run) if isinstance(found, Device))


def _added(run: RunDirectory) -> "Iterator[Device | Path]":
    """What was added and is about the models as they are now; the file, of what is damaged."""
    for file in sorted((run.root / DEVICES).glob("*.json")):
        try:
            device = _read(file)
        except (OSError, ValueError, DamagedError):
            yield file
            continue
        if device.model_sha256 == _delivered(run, device.variant):
            yield device


def device_lines(run: RunDirectory) -> tuple[str, ...]:
    """A line for everything that was added and is about the models as they are now; a damaged file is named."""
    return tuple(
        found.sentence()
        if isinstance(found, Device)
        else f"'{DEVICES}/{found.name}' is damaged: delete it, and add the device's measurements again"
        for found in _added(run)
    )


def _read(file: Path) -> Device:
    """The measurements in a file; raises OSError, ValueError or DamagedError."""
    return Device.model_validate_json(read_ordinary(file))


def _delivered(run: RunDirectory, variant: str) -> str:
    """The digest of a variant of the run's model, or `none`."""
    result = run.stages.result("export" if variant == FULL else "quantize")
    return result.artifacts.get(file_of(variant), "none") if result else "none"
