"""The stages of a run on disk: which are complete and current, and how one is written.

A stage writes into a partial folder that is renamed when it is complete, so `stages/<name>/result.json` exists if and
only if the stage is. The result holds the stage's *key*, a hash of everything it depends on: same key, same result.
"""

import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from atopipe.pipeline.config.schema import Config, ModelSettings
from atopipe.pipeline.rundir.external_inputs import OUTSIDE, libraries_of
from atopipe.pipeline.rundir.layout import RESULT, Result, ResultForm, StageSpec
from atopipe.pipeline.system.errors import MissingError
from atopipe.pipeline.system.files import (
    DamagedError,
    files_in,
    link_or_copy,
    read_sealed,
    sha256_file,
    sha256_json,
    write_sealed,
)
from atopipe.pipeline.system.machine import hardware, library_versions, peak_memory_bytes, reset_peak_memory

SETTLED_NS = 2_000_000_000  # a file younger than this may change again within one tick of the file system's clock


@dataclass
class Attempt:
    """A stage that is being done: it writes into `folder`, and `metrics` are kept with its files."""

    folder: Path
    metrics: Mapping[str, float] = field(default_factory=dict)
    seconds: float = 0.0


class StageStore:
    """The folders `stages/` and `checkpoints/` of the run `config` in `root`.

    `look` gives the digests of what the run reads from outside its directory, by name.
    """

    def __init__(self, root: Path, config: Config, look: Callable[[], dict[str, str]]) -> None:
        self.root, self.config, self._look = root, config, look
        self._digests = FileDigests()

    @cached_property
    def outside(self) -> dict[str, str]:
        """Digests of what the run reads that is not in its directory: code, weights and data of the user's."""
        return self._look()

    def folder(self, stage: str) -> Path:
        return self.root / "stages" / stage

    def result(self, stage: str) -> Result | None:
        """The result of a complete stage, current or not."""
        path = self.folder(stage) / RESULT
        if not path.exists() and not path.is_symlink():
            return None
        try:
            return Result(**read_sealed(path, ResultForm))
        except (DamagedError, FileNotFoundError):
            raise MissingError(f"'{path}' is damaged: run again with --from {stage}") from None

    def artifact(self, stage: str, name: str) -> Path:
        """A file of a complete stage, checked against the digest recorded when it was written."""
        path = self.folder(stage) / name
        result = self.result(stage)
        if result is None or name not in result.artifacts or not path.exists():
            raise MissingError(f"'{path}' is missing: run 'atopipe {stage}' first")
        if self._digests.of(path) != result.artifacts[name]:
            raise MissingError(f"'{path}' has changed since stage {stage} wrote it: run again with --from {stage}")
        return path

    def check_artifacts(self, stage: str) -> None:
        """MissingError unless every file of a complete stage is as it was written."""
        result = self.result(stage)
        for name in result.artifacts if result else ():
            self.artifact(stage, name)

    def restore_copies(self, stage: StageSpec) -> list[str]:
        """Puts back what is missing or changed of a complete stage's copies at the top; the names of those files."""
        result = self.result(stage.name)
        artifacts = result.artifacts if result and stage.published else {}
        lost = [name for name, digest in artifacts.items() if not _is_file_of(self.root / name, self.root, digest)]
        for name in lost:
            _clear_way(self.root / name, self.root)
            shutil.copyfile(self.artifact(stage.name, name), self.root / name)
        return lost

    def depends(self, stage: StageSpec) -> dict[str, Any]:
        """Everything the outcome of `stage` depends on; its inputs must be complete."""
        inputs = {name: self.result(name) for name in stage.inputs}
        outside = {name for setting in stage.settings for name in OUTSIDE.get(setting, ())}
        return {
            "stage": stage.name,
            "settings": self.config.slice_for(stage.settings),
            "outside": {name: digest for name, digest in self.outside.items() if name in outside},
            "inputs": {name: result.digest for name, result in inputs.items() if result is not None},
            "libraries": library_versions(("atopipe", *stage.libraries, *libraries_of(self.config, stage.settings))),
        }

    def key(self, stage: StageSpec) -> str:
        """A hash of everything the outcome of `stage` depends on."""
        return sha256_json(self.depends(stage))

    def is_current(self, stage: StageSpec) -> bool:
        """True if `stage` is complete and nothing it depends on has changed since."""
        result = self.result(stage.name)
        return result is not None and sha256_json(self.made_from(result, stage)) == self.key(stage)

    def made_from(self, result: Result, stage: StageSpec) -> dict[str, Any]:
        """Everything that a result of `stage` depended on when it was made.

        A setting that came later counts with its default, which stands for what was done before there was a choice.
        """
        defaults = Config(model=ModelSettings(name="any")).slice_for(stage.settings)
        return {**result.depends, "settings": _completed(result.depends["settings"], defaults)}

    def take_over(self, stage: StageSpec, other: "StageStore") -> bool:
        """Takes the result of `stage` from another run, if it is complete there and what this run would make.

        Its files are shared where the file system allows it. Raises MissingError where they have changed.
        """
        result = other.result(stage.name)
        if result is None or sha256_json(self.made_from(result, stage)) != self.key(stage):
            return False
        partial = self._begin(stage.name)
        for name in (*result.artifacts, RESULT):  # what says that the stage is complete comes last
            source = other.folder(stage.name) / name if name == RESULT else other.artifact(stage.name, name)
            link_or_copy(source, partial / name)
        self._put_in_place(stage.name)
        return True

    @contextmanager
    def writing(self, stage: StageSpec) -> Iterator[Attempt]:
        """An attempt at `stage`, which is complete at the end, in the place of an older result.

        What an interrupted attempt left is dropped before it. If it fails, what it wrote is dropped as well, and an
        older result stays.
        """
        read = self.depends(stage)["outside"]  # before the stage reads it
        attempt, started = Attempt(self._begin(stage.name)), time.perf_counter()
        reset_peak_memory()
        try:
            yield attempt
            attempt.seconds = time.perf_counter() - started
            self._require_unchanged(stage.name, read)
            self._commit(stage, attempt)
        except BaseException:
            self._abandon(stage.name)
            raise

    def _require_unchanged(self, stage: str, read: Mapping[str, str]) -> None:
        """Raises MissingError where code, weights or images are not those that the stage began with."""
        now = self._look()
        changed = [name for name, digest in read.items() if now.get(name) != digest]
        if changed:
            raise MissingError(
                f"{' and '.join(changed)} changed while stage {stage} ran: restore what was there and run again to "
                "resume, or run again to start with what is there now"
            )

    def recover(self, stage: str) -> None:
        """Ends the commit of `stage` that a killed process had begun: its files were all there, under another name."""
        retired, final = self.folder(f".{stage}.old"), self.folder(stage)
        if (self._partial(stage) / RESULT).exists():
            self._put_in_place(stage)
        elif retired.exists() and not final.exists():
            retired.rename(final)

    def checkpoints(self, stage: str) -> Path:
        """Where an interrupted `stage` keeps its checkpoints."""
        return self.root / "checkpoints" / stage

    def drop_checkpoints(self, stage: str) -> None:
        """Of a stage that is complete."""
        folder = self.checkpoints(stage)
        shutil.rmtree(folder, ignore_errors=True)
        if folder.parent.is_dir() and not any(folder.parent.iterdir()):
            folder.parent.rmdir()

    def _partial(self, stage: str) -> Path:
        return self.folder(f".{stage}.partial")

    def _begin(self, stage: str) -> Path:
        partial = self._partial(stage)
        remove(partial)
        partial.mkdir(parents=True)
        return partial

    def _commit(self, stage: StageSpec, attempt: Attempt) -> None:
        depends = self.depends(stage)
        artifacts = {f.relative_to(attempt.folder).as_posix(): sha256_file(f) for f in files_in(attempt.folder)}
        result = Result(
            stage.name,
            sha256_json(depends),
            depends,
            artifacts,
            dict(attempt.metrics),
            attempt.seconds,
            peak_memory_bytes(),
            {"command": sys.argv[1:], "hardware": hardware()},
        )
        write_sealed(attempt.folder / RESULT, result.as_json())
        self._put_in_place(stage.name)

    def _abandon(self, stage: str) -> None:
        """Drops what an attempt left, unless only its new name was missing; an older result is back."""
        if not (self._partial(stage) / RESULT).exists():
            shutil.rmtree(self._partial(stage), ignore_errors=True)
        self.recover(stage)

    def _put_in_place(self, stage: str) -> None:
        final, retired = self.folder(stage), self.folder(f".{stage}.old")
        shutil.rmtree(retired, ignore_errors=True)
        if final.exists():
            final.rename(retired)
        self._partial(stage).rename(final)
        shutil.rmtree(retired, ignore_errors=True)
        self.drop_checkpoints(stage)


def _is_file_of(path: Path, root: Path, digest: str) -> bool:
    """Whether an ordinary file of that digest lies there, reached through no link below `root`."""
    between = [path, *path.parents][: len(path.relative_to(root).parts)]
    return path.is_file() and not any(map(Path.is_symlink, between)) and sha256_file(path) == digest


def remove(path: Path) -> None:
    """Whatever is there: a link itself, not what it leads to."""
    if path.is_symlink() or path.is_file():
        path.unlink()
    else:
        shutil.rmtree(path, ignore_errors=True)


def _clear_way(path: Path, root: Path) -> None:
    """Makes place for a file: what lies there, or where one of its folders has to be, is taken away."""
    for place in reversed([path, *path.parents][: len(path.relative_to(root).parts)]):
        if place.is_symlink() or place.is_file():
            place.unlink()
        elif place == path and place.is_dir():
            shutil.rmtree(place)
        if place != path:
            place.mkdir(exist_ok=True)


def _completed(then: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """`then`, and what only `defaults` has, section by section."""
    known = {**defaults, **then}
    sections = [name for name, default in defaults.items() if all(map(_is_section, (default, known[name])))]
    return {**known, **{name: _completed(known[name], defaults[name]) for name in sections}}


def _is_section(value: object) -> bool:
    return isinstance(value, Mapping)


class FileDigests:
    """SHA-256 of files, each read once as long as its bytes cannot have changed.

    Whatever writes to a file or changes its times sets its time of status change, which no program can choose. A file
    that has only just been written is read again: within one tick of the clock, a second change would not show. Where
    the system has no such time, every file is read each time.
    """

    def __init__(self) -> None:
        self._known: dict[Path, tuple[tuple[int, ...], str]] = {}

    def of(self, path: Path) -> str:
        """The digest of the bytes that `path` has now."""
        before, state = time.time_ns(), _state(path)
        known = self._known.get(path)
        if known is not None and known[0] == state:
            return known[1]
        digest = sha256_file(path)
        if os.name == "posix" and before - path.stat().st_ctime_ns > SETTLED_NS:
            self._known[path] = state, digest
        return digest


def _state(path: Path) -> tuple[int, ...]:
    status = path.stat()
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
