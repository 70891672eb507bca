"""A manifest.json: the description of a run that can be repeated and compared."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from atopipe.pipeline.rundir.directory import RunDirectory
from atopipe.pipeline.rundir.layout import MODEL, ManifestForm
from atopipe.pipeline.system.errors import MissingError, UsageError
from atopipe.pipeline.system.files import DamagedError, read_sealed
from atopipe.pipeline.system.machine import hardware, library_versions

DELIVERED = ("export", MODEL)


def read_manifest(path: Path) -> dict[str, Any]:
    """The content of a run's manifest; UsageError where there is none, MissingError where it has been changed."""
    try:
        manifest = read_sealed(path, ManifestForm)
    except OSError as error:
        raise UsageError(f"--from-manifest '{path}' cannot be read: {error.strerror}") from None
    except DamagedError:
        raise MissingError(
            f"'{path}' is damaged or not the manifest of a run: restore it from a copy of the run"
        ) from None
    return manifest


def differing(manifest: dict[str, Any], run: RunDirectory) -> Iterator[str]:
    """What is not here as it was there and may change bytes: code, weights, data, libraries, processor, GPU, Python."""
    yield from (f"{n} has changed" for n, old in manifest["outside"].items() if old != run.stages.outside.get(n))
    versions = library_versions(manifest["versions"])
    yield from (f"{n} was {old}, is {versions[n]}" for n, old in manifest["versions"].items() if old != versions[n])
    here, there = hardware(), manifest["hardware"]
    for name in ("cpu", "gpu", "python"):
        if name in there and there[name] != here.get(name):
            yield f"{name} was {there[name]}, is {here.get(name, 'none')}"


def compared(manifest: dict[str, Any], run: RunDirectory) -> str:
    """Whether the delivered model is the manifest's, byte for byte."""
    stage, name = DELIVERED
    digests = {s["stage"]: s["artifacts"].get(name) for s in manifest["stages"]}
    result = run.stages.result(stage)
    if result is None or digests.get(stage) is None:
        return f"no {name} to compare with that of the manifest"
    same = result.artifacts[name] == digests[stage]
    return f"{name} is {'identical to' if same else 'different from'} that of the manifest, byte for byte"
