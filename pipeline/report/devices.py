"""What other machines measured of a run's model: the output of the bundle's `infer.py --bench --json`."""

from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from atopipe.pipeline.config.schema import FULL
from atopipe.pipeline.rundir.directory import RunDirectory
from atopipe.pipeline.rundir.layout import DEVICES, file_of
from atopipe.pipeline.system.errors import MissingError, UsageError
from atopipe.pipeline.system.files import DamagedError, read_ordinary, write_json


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


def device_lines(run: RunDirectory) -> tuple[str, ...]:
    """A line for everything that was added and is about the models as they are now; a damaged file is named."""
    lines = []
    for file in sorted((run.root / DEVICES).glob("*.json")):
        try:
            device = _read(file)
        except (OSError, ValueError, DamagedError):
            lines.append(f"'{DEVICES}/{file.name}' is damaged: delete it, and add the device's measurements again")
            continue
        if device.model_sha256 == _delivered(run, device.variant):
            lines.append(device.sentence())
    return tuple(lines)


def _read(file: Path) -> Device:
    """The measurements in a file; raises OSError, ValueError or DamagedError."""
    return Device.model_validate_json(read_ordinary(file))


def _delivered(run: RunDirectory, variant: str) -> str:
    """The digest of a variant of the run's model, or `none`."""
    result = run.stages.result("export" if variant == FULL else "quantize")
    return result.artifacts.get(file_of(variant), "none") if result else "none"
