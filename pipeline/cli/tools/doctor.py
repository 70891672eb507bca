"""What this machine offers a run, and what is in its way: packages, devices, providers, processors, memory, disk."""

import importlib
import importlib.util
import platform
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from atopipe.pipeline.system.machine import ORT_PACKAGES, hardware, is_installed, library_versions, runtime_package
from atopipe.pipeline.system.text import first_line

# Package -> the module it brings; all of these must be there.
REQUIRED: Mapping[str, str] = {
    "torch": "torch",
    "torchvision": "torchvision",
    "torch-pruning": "torch_pruning",
    "onnx": "onnx",
    "onnxscript": "onnxscript",
    "onnxruntime": "onnxruntime",
    "numpy": "numpy",
    "psutil": "psutil",
    "filelock": "filelock",
    "scipy": "scipy",
    "scikit-learn": "sklearn",
    "safetensors": "safetensors",
    "jinja2": "jinja2",
    "pillow": "PIL",
}
EXTRAS = ("timm", "tensorboard", "mlflow")
LEAST_DISK, LEAST_MEMORY = 1e9, 2e9  # bytes; a run of the smallest kind fits


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at; `remedy` where it stands in the way of a run."""

    name: str
    said: str
    remedy: str | None = None

    def as_text(self) -> str:
        """One line."""
        return f"{self.name:<14} {self.said}" + (f"  ->  {self.remedy}" if self.remedy else "")


def examine() -> list[Finding]:
    """Everything that a run needs or may use, in the order in which it would be missed."""
    sections = (_packages, _extras, _devices, _providers, _machine)
    return [finding for section in sections for finding in _as_far_as_it_goes(section)]


def _as_far_as_it_goes(section: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    """The findings up to the first thing that cannot even be looked at, for want of a package that is named before."""
    try:
        yield from section()
    except Exception as error:  # a broken installation may raise anything
        yield Finding(section.__name__.strip("_"), f"cannot be checked: {first_line(error)}")


def _packages() -> Iterator[Finding]:
    yield Finding("python", platform.python_version())
    versions = library_versions(("atopipe", *REQUIRED))
    yield Finding("atopipe", versions["atopipe"])
    for package, module in REQUIRED.items():
        yield _imported(package, versions[package], module)
    if all(map(is_installed, ORT_PACKAGES)):
        remedy = "pip uninstall -y onnxruntime onnxruntime-gpu, then install one of them"
        yield Finding("onnxruntime", "both of its packages are installed and overwrite each other", remedy)


def _imported(package: str, version: str, module: str) -> Finding:
    """The version, or what happens when the package is imported, with what may help."""
    try:
        importlib.import_module(module)
    except Exception as error:  # a broken installation may raise anything
        name = runtime_package() if package == "onnxruntime" else package
        return Finding(package, f"cannot be imported: {first_line(error)}", f"pip install --force-reinstall {name}")
    return Finding(package, version)


def _extras() -> Iterator[Finding]:
    for package in EXTRAS:
        there = importlib.util.find_spec(package) is not None
        version = library_versions((package,))[package]
        yield Finding(package, version if there else f"not installed (pip install 'atopipe[{package}]')")


def _devices() -> Iterator[Finding]:
    try:
        import torch
    except Exception:  # said already
        return
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            free, total = torch.cuda.mem_get_info(index)
            yield Finding(f"GPU {index}", f"{torch.cuda.get_device_name(index)}, {_gb(free)} of {_gb(total)} free")
    else:
        built = f"torch is built for CUDA {torch.version.cuda}" if torch.version.cuda else "torch is built without CUDA"
        yield Finding("GPU", f"none that torch can use ({built}): training runs on the CPU")


def _providers() -> Iterator[Finding]:
    try:
        from atopipe.export.smoke_model import write_smallest
        from atopipe.validate.session import usable_providers

        with tempfile.TemporaryDirectory() as folder:
            write_smallest(Path(folder) / "smallest.onnx")
            found = usable_providers(Path(folder) / "smallest.onnx")
    except Exception as error:  # whatever a broken ONNX Runtime does
        remedy = f"pip install --force-reinstall {runtime_package()}"
        yield Finding("ONNX Runtime", f"cannot run a model: {first_line(error)}", remedy)
        return
    yield from (Finding("ONNX Runtime", f"{name}: usable") for name in found.usable)
    yield from (Finding("ONNX Runtime", f"{name}: not usable, {reason}") for name, reason in found.skipped.items())


def _machine() -> Iterator[Finding]:
    from atopipe.pipeline.system.machine import available_memory, available_processors

    machine = hardware()
    yield Finding(
        "CPU", f"{machine['cpu']}, {available_processors()} of {machine['cores']} processors by affinity and quota"
    )
    memory = available_memory()
    little = "free some, or lower --batch-size" if memory < LEAST_MEMORY else None
    yield Finding("memory", f"{_gb(memory)} of {_gb(machine['memory_bytes'])} free", little)
    disk = shutil.disk_usage(Path.cwd())
    full = "free some, or choose an --output elsewhere" if disk.free < LEAST_DISK else None
    yield Finding("disk", f"{_gb(disk.free)} of {_gb(disk.total)} free in '{Path.cwd()}'", full)


def _gb(count: float) -> str:
    return f"{count / 1e9:.1f} GB"
