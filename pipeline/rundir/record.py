"""What is written down of a run beside its stages: events.jsonl, metrics.json and manifest.json."""

import json
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from atopipe.pipeline.config.schema import Config
from atopipe.pipeline.rundir.layout import (
    DEVICES,
    EXECUTION,
    MANIFEST,
    STARTING_WEIGHTS,
    Result,
    StageSpec,
    versions_of,
)
from atopipe.pipeline.rundir.store import StageStore
from atopipe.pipeline.system.files import files_in, sha256_file, sha256_json, write_json, write_sealed


class RunRecord:
    """The records of the run `config` in `root`, whose stages are `stages`."""

    def __init__(self, root: Path, config: Config, stages: StageStore) -> None:
        self.root, self.config, self.stages = root, config, stages
        self.followers: list[Callable[[Mapping[str, Any]], None]] = []  # receive what goes into events.jsonl

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

    def publish(self, stages: Sequence[StageSpec]) -> dict[str, float]:
        """Writes metrics.json of the current and manifest.json of all complete stages, and returns the metrics."""
        metrics = self.metrics(stages)
        write_json(self.root / "metrics.json", metrics)
        complete = [result for stage in stages if (result := self.stages.result(stage.name))]
        write_sealed(self.root / MANIFEST, self._manifest(complete, {r.stage for r in self._current(stages)}))
        return metrics

    def starting_weights(self) -> dict[str, str] | None:
        """Key, digest and licence of the weights that training started from; None where it started from scratch."""
        trained = self.stages.result("train")
        if trained is None or STARTING_WEIGHTS not in trained.artifacts:
            return None
        path = self.stages.artifact("train", STARTING_WEIGHTS)
        weights: dict[str, str] = json.loads(path.read_text(encoding="utf-8"))
        return weights

    def files(self) -> list[str]:
        """Those beside the stages whose digests the manifest holds."""
        devices = [file.relative_to(self.root).as_posix() for file in files_in(self.root / DEVICES)]
        return ["config.yaml", "metrics.json", *devices]

    def _current(self, stages: Sequence[StageSpec]) -> list[Result]:
        current = [stage for stage in stages if self.stages.is_current(stage)]
        return [result for stage in current if (result := self.stages.result(stage.name))]

    def _manifest(self, results: Sequence[Result], current: Collection[str]) -> dict[str, Any]:
        """Command, hardware and versions of the run are those of its first stage; each stage has its own as well."""
        first = results[0].machine if results else {}
        return {
            "command": first.get("command", []),
            "seed": self.config.seed,
            "config": self.config.resolved(),
            "versions": versions_of(results),
            "hardware": first.get("hardware", {}),
            "outside": self.stages.outside,
            "weights": self.starting_weights(),
            "files": {name: sha256_file(self.root / name) for name in self.files()},
            "execution": {r.stage: self._execution(r.stage) for r in results if EXECUTION in r.artifacts},
            "stages": [_described(result, is_current=result.stage in current) for result in results],
        }

    def _execution(self, stage: str) -> object:
        return json.loads(self.stages.artifact(stage, EXECUTION).read_text(encoding="utf-8"))


def _described(result: Result, *, is_current: bool) -> dict[str, Any]:
    return {
        "stage": result.stage,
        "current": is_current,
        "key": result.key,
        "digest": result.digest,
        "result": sha256_json(result.as_json()),
        "inputs": result.depends["inputs"],
        "artifacts": result.artifacts,
        **result.machine,
        "versions": result.depends["libraries"],
    }
