"""Is a run directory as the stages left it? Every file is held against the chain of digests in manifest.json.

manifest.json   sealed with its own digest; names the result of every stage and the digest of every file
result.json     sealed likewise; its inputs are the digests of the stages it read
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from atopipe.pipeline.files import DamagedError, files_in, read_sealed, sha256_file, sha256_json
from atopipe.pipeline.lock import LOCK_FILES
from atopipe.pipeline.run_directory import MANIFEST, RESULT, RunDirectory

PUBLISHED = ("bundle", "report")  # stages whose files have copies at the top of the run directory
OWN = {MANIFEST, "events.jsonl", "inputs.json", *LOCK_FILES}  # not in the manifest: itself, and what goes on changing
GROWING = ("checkpoints",)
Digests = dict[str, str]


@dataclass(frozen=True)
class Problem:
    """A file of the run directory and what is wrong with it."""

    file: str
    what: str

    def __str__(self) -> str:
        return f"{self.file}: {self.what}"


def verify(run: RunDirectory) -> list[Problem]:
    """Everything that is missing, changed or extra, by name; empty if the run is as its stages left it."""
    path = run.root / MANIFEST
    try:
        manifest = read_sealed(path)
    except FileNotFoundError:
        return [Problem(MANIFEST, "missing, as no command on this run has ended yet")]
    except DamagedError:
        return [Problem(MANIFEST, "changed: it does not fit the digest it ends with")]
    expected = _expected(manifest)
    return [*_chain(manifest), *_differences(run.root, expected), *_results(run.root, manifest)]


def _expected(manifest: dict[str, Any]) -> Digests:
    """File -> SHA-256 for every file of the run but the results of the stages."""
    files: Digests = dict(manifest["files"])
    for stage in manifest["stages"]:
        name, artifacts = stage["stage"], stage["artifacts"]
        files |= {f"stages/{name}/{file}": digest for file, digest in artifacts.items()}
        if name in PUBLISHED:
            files |= artifacts
    return files


def _chain(manifest: dict[str, Any]) -> Iterator[Problem]:
    """Every stage read what the stages before it left."""
    digests = {stage["stage"]: stage["digest"] for stage in manifest["stages"]}
    for stage in manifest["stages"]:
        for name, digest in stage["inputs"].items():
            if digests.get(name, digest) != digest:
                yield Problem(f"stages/{stage['stage']}", f"made from another result of stage {name}")


def _results(root: Path, manifest: dict[str, Any]) -> Iterator[Problem]:
    """The results of the stages are those that the manifest names."""
    for stage in manifest["stages"]:
        name = f"stages/{stage['stage']}/{RESULT}"
        try:
            result = read_sealed(root / name)
            if sha256_json(result) != stage["result"]:
                yield Problem(name, "changed since the manifest was written")
        except FileNotFoundError:
            yield Problem(name, "missing")
        except DamagedError:
            yield Problem(name, "changed: it does not fit the digest it ends with")


def _differences(root: Path, expected: Digests) -> Iterator[Problem]:
    for name, digest in expected.items():
        if not (root / name).is_file():
            yield Problem(name, "missing")
        elif sha256_file(root / name) != digest:
            yield Problem(name, "changed")
    for file in files_in(root):
        name = file.relative_to(root).as_posix()
        if name not in expected and not _belongs(name):
            yield Problem(name, "extra: no stage of the manifest left it")


def _belongs(name: str) -> bool:
    """Whether a file that the manifest does not name may be there: of work that goes on, or has been cut off."""
    top, _, rest = name.partition("/")
    unfinished = top == "stages" and rest.startswith(".")
    return name in OWN or name.endswith(f"/{RESULT}") or top in GROWING or unfinished
