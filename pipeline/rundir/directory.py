"""The run directory: the interface between the stages, and the record of what happened.

A stage writes into a partial folder that is renamed when it is complete, so `stages/<name>/result.json` exists if and
only if the stage is. The result holds the stage's *key*, a hash of everything it depends on: same key, same result.
"""

import json
import shutil
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from atopipe.pipeline.config.load import parse_config, read_yaml
from atopipe.pipeline.config.schema import Config
from atopipe.pipeline.rundir.external_inputs import OUTSIDE, fingerprints, libraries_of
from atopipe.pipeline.rundir.layout import DEVICES, EXECUTION, LIBRARIES, MANIFEST, RESULT, Result, StageSpec
from atopipe.pipeline.rundir.lock import LOCK_FILES
from atopipe.pipeline.system.errors import MissingError, UsageError
from atopipe.pipeline.system.failures import explain
from atopipe.pipeline.system.files import (
    DamagedError,
    files_in,
    read_sealed,
    sha256_file,
    sha256_json,
    write_json,
    write_sealed,
    write_text,
)
from atopipe.pipeline.system.machine import hardware, library_versions


class RunDirectory:
    """One run on disk. Make one with `create` (a new run, or the same one again) or `open` (an existing run)."""

    def __init__(self, root: Path, config: Config) -> None:
        self.root = root
        self.config = config
        self.followers: list[Callable[[Mapping[str, Any]], None]] = []  # are told what goes into events.jsonl

    @classmethod
    def check(cls, root: Path, config: Config, *, force: bool = False) -> None:
        """UsageError where `root` holds something else than the run `config` (`force` allows another run)."""
        if root.exists() and not root.is_dir():
            raise UsageError(f"output '{root}' is a file: choose another --output")
        if (root / "config.yaml").exists():
            others = _holds_work(root) and cls.open(root).config.identity() != config.identity()
            if others and not force:
                remedy = "choose another --output, or --force to replace it"
                raise UsageError(f"output '{root}' belongs to another configuration: {remedy}")
        elif root.exists() and any(entry.name not in LOCK_FILES for entry in root.iterdir()):
            raise UsageError(f"output '{root}' is not empty and is no run of atopipe: choose another --output")

    @classmethod
    def create(cls, root: Path, config: Config, *, force: bool = False) -> "RunDirectory":
        """The run `config` in `root`, a new one or the same again, where `check` allows it."""
        cls.check(root, config, force=force)
        try:
            root.mkdir(parents=True, exist_ok=True)
            write_text(root / "config.yaml", yaml.safe_dump(config.resolved(), sort_keys=False))
        except OSError as error:
            known = explain(error, root)
            other = f"output '{root}' cannot be made: {error.strerror}: choose another --output"
            raise MissingError(known.message if known else other) from None
        return cls(root, config)

    @classmethod
    def open(cls, root: Path) -> "RunDirectory":
        """The run in `root`; UsageError where there is none."""
        if not (root / "config.yaml").exists():
            raise UsageError(
                f"'{root}' is no run of atopipe: give the folder that 'atopipe run' or 'atopipe train' wrote"
            )
        return cls(root, parse_config(read_yaml(root / "config.yaml")))

    def folder(self, stage: str) -> Path:
        return self.root / "stages" / stage

    def result(self, stage: str) -> Result | None:
        """The result of a complete stage, current or not."""
        path = self.folder(stage) / RESULT
        if not path.exists():
            return None
        try:
            return Result(**read_sealed(path))
        except (DamagedError, TypeError):
            raise MissingError(f"'{path}' is damaged: run again with --from {stage}") from None

    def artifact(self, stage: str, name: str) -> Path:
        """A file of a complete stage, checked against the digest recorded when it was written."""
        path = self.folder(stage) / name
        result = self.result(stage)
        if result is None or name not in result.artifacts or not path.exists():
            raise MissingError(f"'{path}' is missing: run 'atopipe {stage}' first")
        if sha256_file(path) != result.artifacts[name]:
            raise MissingError(f"'{path}' has changed since stage {stage} wrote it: run again with --from {stage}")
        return path

    def check_artifacts(self, stage: str) -> None:
        """MissingError unless every file of a complete stage is as it was written."""
        result = self.result(stage)
        for name in result.artifacts if result else ():
            self.artifact(stage, name)

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

    @cached_property
    def outside(self) -> dict[str, str]:
        """Digests of what the run reads that is not in its directory: code, weights and data of the user's."""
        return fingerprints(self.config, self.root / "inputs.json")

    def key(self, stage: StageSpec) -> str:
        """A hash of everything the outcome of `stage` depends on."""
        return sha256_json(self.depends(stage))

    def is_current(self, stage: StageSpec) -> bool:
        """True if `stage` is complete and nothing it depends on has changed since."""
        result = self.result(stage.name)
        return result is not None and result.key == self.key(stage)

    def checkpoints(self, stage: str) -> Path:
        """Where an interrupted `stage` keeps what it goes on from."""
        return self.root / "checkpoints" / stage

    def begin(self, stage: str) -> Path:
        """An empty folder for the files of `stage`; what an interrupted attempt left is dropped."""
        partial = self.folder(f".{stage}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        return partial

    def abandon(self, stage: str) -> None:
        """Drops what an attempt at `stage` left, unless only its new name was missing; an older result is back."""
        partial = self.folder(f".{stage}.partial")
        if not (partial / RESULT).exists():
            shutil.rmtree(partial, ignore_errors=True)
        self.recover(stage)

    def commit(self, stage: StageSpec, metrics: Mapping[str, float], seconds: float, peak_bytes: int) -> Result:
        """Makes the partial folder of `stage` its complete one, in the place of an older result."""
        partial = self.folder(f".{stage.name}.partial")
        depends = self.depends(stage)
        artifacts = {file.relative_to(partial).as_posix(): sha256_file(file) for file in files_in(partial)}
        result = Result(stage.name, sha256_json(depends), depends, artifacts, dict(metrics), seconds, peak_bytes)
        write_sealed(partial / RESULT, asdict(result))
        self._put_in_place(stage.name)
        return result

    def recover(self, stage: str) -> None:
        """Ends the commit of `stage` that a killed process had begun: its files were all there, under another name."""
        retired, final = self.folder(f".{stage}.old"), self.folder(stage)
        if (self.folder(f".{stage}.partial") / RESULT).exists():
            self._put_in_place(stage)
        elif retired.exists() and not final.exists():
            retired.rename(final)

    def _put_in_place(self, stage: str) -> None:
        partial, final, retired = (self.folder(name) for name in (f".{stage}.partial", stage, f".{stage}.old"))
        shutil.rmtree(retired, ignore_errors=True)
        if final.exists():
            final.rename(retired)
        partial.rename(final)
        shutil.rmtree(retired, ignore_errors=True)
        self.drop_checkpoints(stage)

    def drop_checkpoints(self, stage: str) -> None:
        """Of a stage that is complete."""
        folder = self.checkpoints(stage)
        shutil.rmtree(folder, ignore_errors=True)
        if folder.parent.is_dir() and not any(folder.parent.iterdir()):
            folder.parent.rmdir()

    def event(self, kind: str, **fields: object) -> None:
        """Appends what happened to events.jsonl, one JSON object per line."""
        event = {"time": time.time(), "event": kind, **fields}
        with (self.root / "events.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(event, default=str) + "\n")
        for follow in self.followers:
            follow(event)

    def metrics(self, stages: Sequence[StageSpec]) -> dict[str, float]:
        """The flat metrics of all current stages; times are summed, memory is the largest."""
        results = self._current(stages)
        merged = {name: value for result in results for name, value in result.metrics.items()}
        seconds = {f"time.{result.stage}_s": result.seconds for result in results}
        if results:
            merged["memory.peak_bytes"] = max(result.peak_bytes for result in results)
            merged |= {**seconds, "time.total_s": sum(seconds.values())}
        return dict(sorted(merged.items()))

    def _current(self, stages: Sequence[StageSpec]) -> list[Result]:
        return [result for stage in stages if self.is_current(stage) and (result := self.result(stage.name))]

    def publish(self, stages: Sequence[StageSpec]) -> dict[str, float]:
        """Writes metrics.json of the current and manifest.json of all complete stages, and returns the metrics."""
        metrics = self.metrics(stages)
        write_json(self.root / "metrics.json", metrics)
        complete = [result for stage in stages if (result := self.result(stage.name))]
        write_sealed(self.root / MANIFEST, self._manifest(complete, {r.stage for r in self._current(stages)}))
        return metrics

    def _manifest(self, results: Sequence[Result], current: Collection[str]) -> dict[str, Any]:
        return {
            "command": sys.argv[1:],
            "seed": self.config.seed,
            "config": self.config.resolved(),
            "versions": library_versions(LIBRARIES),
            "hardware": hardware(),
            "outside": self.outside,
            "files": {name: sha256_file(self.root / name) for name in self.records()},
            "execution": {r.stage: self._execution(r.stage) for r in results if EXECUTION in r.artifacts},
            "stages": [
                {
                    "stage": r.stage,
                    "current": r.stage in current,
                    "key": r.key,
                    "digest": r.digest,
                    "result": sha256_json(asdict(r)),
                    "inputs": r.depends["inputs"],
                    "artifacts": r.artifacts,
                }
                for r in results
            ],
        }

    def records(self) -> list[str]:
        """The files beside the stages whose digests the manifest holds."""
        devices = [file.relative_to(self.root).as_posix() for file in files_in(self.root / DEVICES)]
        return ["config.yaml", "metrics.json", *devices]

    def _execution(self, stage: str) -> object:
        return json.loads(self.artifact(stage, EXECUTION).read_text(encoding="utf-8"))


class Scratch(RunDirectory):
    """The directory of a process that delivers nothing: what it is made from counts for nobody."""

    @cached_property
    def outside(self) -> dict[str, str]:
        """Nothing: the images are not read for their digests once more in every process of a job."""
        return {}


def _holds_work(root: Path) -> bool:
    """True if a stage of the run in `root` has completed or has been cut off in the middle."""
    return (root / "stages").is_dir() and any((root / "stages").iterdir())
