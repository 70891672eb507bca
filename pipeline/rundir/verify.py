"""Is a run directory intact? Every file is compared with its recorded digest.

result.json     of every stage, sealed with its own digest: the digests of the stage's files, and of what it read
manifest.json   sealed likewise: the digest of every result, and of the files beside the stages
"""

import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from atopipe.pipeline.rundir.directory import RunDirectory
from atopipe.pipeline.rundir.layout import MANIFEST, RESULT, ManifestForm, ResultForm, StageSpec
from atopipe.pipeline.system.files import DamagedError, read_sealed, sha256_file, sha256_json

# What has no recorded digest: it contains its own, keeps changing, or was left by work that was interrupted.
UNDIGESTED = re.compile(
    r"manifest\.json|events\.jsonl|inputs\.json|mlflow\.json|\.lock|\.lock\.json|\.bundle\.partial/.+"
    r"|stages/[^./]+/result\.json|stages/\.[^/]+\.(partial|old)/.+|tensorboard/events\.out\.tfevents\.[^/]+"
    r"|checkpoints/[^./]+/\d{12}\.(json|safetensors)|(.+/)?\.[^/]+\.tmp"
)
NEVER = "missing: no command on this run has ended yet"
BROKEN = "changed: it does not match its own digest"
Digests = dict[str, str]
Sealed = dict[str, Any]


@dataclass(frozen=True)
class Problem:
    """A file of the run directory and what is wrong with it."""

    file: str
    what: str

    def as_text(self) -> str:
        """One line."""
        return f"{self.file}: {self.what}"


def verify(run: RunDirectory, stages: Iterable[StageSpec]) -> list[Problem]:
    """Everything that is missing, changed or extra, by name; empty if the run is as its `stages` left it."""
    manifest = _sealed(run.root / MANIFEST, ManifestForm)
    if isinstance(manifest, str):
        return [Problem(MANIFEST, NEVER if manifest == "missing" else manifest)]
    names = {stage["stage"] for stage in manifest["stages"]} | _stages_in(run.root)
    results = {name: _sealed(run.stages.folder(name) / RESULT, ResultForm) for name in sorted(names)}
    whole = {name: result for name, result in results.items() if isinstance(result, dict)}
    broken = [Problem(f"stages/{name}/{RESULT}", what) for name, what in results.items() if isinstance(what, str)]
    # The files of a stage whose result is broken are judged by the manifest.
    artifacts = {stage["stage"]: stage["artifacts"] for stage in manifest["stages"]}
    artifacts |= {name: result["artifacts"] for name, result in whole.items()}
    current = {stage["stage"] for stage in manifest["stages"] if stage["current"]}
    published = [stage.name for stage in stages if stage.published]
    copies = [(name in current, artifacts.get(name, {})) for name in published]
    expected = manifest["files"] | _in_stages(artifacts) | _union(files for is_current, files in copies if is_current)
    outdated = _union(files for is_current, files in copies if not is_current)
    return [*broken, *_chain(manifest, whole), *_differences(run.root, expected, outdated)]


def _sealed(path: Path, form: type[BaseModel]) -> Sealed | str:
    """The content, or what is wrong with the file."""
    try:
        return read_sealed(path, form)
    except FileNotFoundError:
        return "missing"
    except DamagedError:
        return BROKEN


def _stages_in(root: Path) -> set[str]:
    folder = root / "stages"
    return {path.name for path in folder.iterdir() if not path.name.startswith(".")} if folder.is_dir() else set()


def _chain(manifest: Sealed, results: dict[str, Sealed]) -> Iterator[Problem]:
    """The results are those of the manifest, and what was current when it was written fits together."""
    digests = {stage["stage"]: stage["digest"] for stage in manifest["stages"]}
    for stage in manifest["stages"]:
        name, read = stage["stage"], stage["inputs"]
        if name in results and sha256_json(results[name]) != stage["result"]:
            yield Problem(f"stages/{name}/{RESULT}", "changed since the manifest was written")
        if stage["current"] and any(digests.get(other, digest) != digest for other, digest in read.items()):
            yield Problem(f"stages/{name}", "made from results that are not here")


def _in_stages(artifacts: dict[str, Digests]) -> Digests:
    return {f"stages/{name}/{file}": digest for name, files in artifacts.items() for file, digest in files.items()}


def _union(files: Iterable[Digests]) -> Digests:
    return {name: digest for some in files for name, digest in some.items()}


def _differences(root: Path, expected: Digests, tolerated: Collection[str]) -> Iterator[Problem]:
    """`tolerated`: copies of what is out of date, which may have been removed or rewritten."""
    for name, digest in expected.items():
        if not (root / name).is_file():
            yield Problem(name, "missing")
        elif sha256_file(root / name) != digest:
            yield Problem(name, "changed")
    for path in sorted(root.rglob("*")):
        name = path.relative_to(root).as_posix()
        if path.is_symlink():
            yield Problem(name, "a link, which no stage makes")
        elif not path.is_dir() and name not in expected and name not in tolerated and not UNDIGESTED.fullmatch(name):
            yield Problem(name, "extra: no stage wrote it")
