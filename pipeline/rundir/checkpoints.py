"""Snapshots of a training run on disk, so that an interrupted run resumes.

A checkpoint is two files: the snapshot as safetensors and, written after it, a small JSON file with its digest and the
key of the stage. What is damaged is reported and passed over; what belongs to another run is not looked at.
"""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel

from atopipe.pipeline.system.files import (
    DamagedError,
    read_ordinary,
    read_sealed,
    sha256_bytes,
    write_bytes,
    write_sealed,
)
from atopipe.pipeline.system.signals import StopRequest

if TYPE_CHECKING:
    from atopipe.ato.snapshot import Snapshot


KEPT = 2
LARGEST_SNAPSHOT = 2**40  # bytes
PATIENCE = 50  # a checkpoint waits until what the last one took is spent so many times over: at most 2 % of the time
VALUES = "values"


class Description(BaseModel):
    """The JSON file of a checkpoint: the key of its stage, and the digest of the snapshot."""

    key: str
    content: str


class Checkpoints:
    """The checkpoints in `folder` of the stage with this `key`, one every so many minutes and at every new phase."""

    def __init__(
        self,
        folder: Path,
        key: str,
        minutes: float,
        stop: StopRequest,
        say: Callable[[str], None],
        record: Callable[[int, float], None] = lambda step, seconds: None,
        start: "Callable[[], Snapshot | None]" = lambda: None,
    ) -> None:
        self.folder, self.key, self.interval, self.stop = folder, key, 60 * minutes, stop
        self.say, self.record, self.start = say, record, start
        self.saved_at, self.cost, self.phase = time.monotonic(), 0.0, ""

    def latest(self) -> "Snapshot | None":
        """The newest that is whole and of this run; else where it starts, if that is not the beginning."""
        content = self.latest_bytes()
        return None if content is None else unpacked(content)

    def latest_bytes(self) -> bytes | None:
        """The same as it stands in its file."""
        mine = self._mine()
        for file in reversed(mine):
            if (content := self._read(file)) is not None:
                self.say(f"resuming from step {int(file.stem):,} of '{self.folder}'")
                return content
        if not mine and any(self.folder.glob("*.json")):
            self.say(f"starting from scratch: '{self.folder}' belongs to other settings, code, data or libraries")
        start = self.start()
        return None if start is None else packed(start)

    def after_step(self, phase: str, take: "Callable[[], Snapshot]") -> None:
        """Keeps a snapshot as `keep` does; raises KeyboardInterrupt if the process is to stop."""
        self.keep(phase, take)
        if self.stop.made:
            raise KeyboardInterrupt

    def keep(self, phase: str, take: "Callable[[], Snapshot]") -> None:
        """Keeps a snapshot if it is time for one, or if the process is to stop."""
        begun, self.phase = self.phase not in ("", phase), phase
        waited = time.monotonic() - self.saved_at
        due = (begun or waited >= self.interval) and waited >= PATIENCE * self.cost
        if due or self.stop.made:
            self._save(take())

    def _save(self, snapshot: "Snapshot") -> None:
        start = time.monotonic()
        self.folder.mkdir(parents=True, exist_ok=True)
        content = packed(snapshot)
        step = snapshot.values["trainer"]["steps"]["finished"]
        file = self.folder / f"{step:012d}.json"
        write_bytes(file.with_suffix(".safetensors"), content)
        write_sealed(file, {"key": self.key, "content": sha256_bytes(content)})
        # Later ones were passed over because they are damaged, or training would have gone on from them.
        kept = [mine for mine in self._mine() if _key_of(mine) == self.key and mine <= file][-KEPT:]
        for old in [file for file in self.folder.glob("*.json") if file not in kept]:
            old.unlink()
            old.with_suffix(".safetensors").unlink(missing_ok=True)
        self.saved_at = time.monotonic()
        self.cost = self.saved_at - start
        self.record(step, self.cost)

    def _mine(self) -> list[Path]:
        """What describes the checkpoints of this run, the oldest first; what is damaged may be one."""
        return [file for file in sorted(self.folder.glob("*.json")) if _key_of(file) in (self.key, None)]

    def _read(self, file: Path) -> bytes | None:
        try:
            kept = read_sealed(file, Description)
            content = read_ordinary(file.with_suffix(".safetensors"), LARGEST_SNAPSHOT)
            if sha256_bytes(content) == kept["content"]:
                return content
        except (OSError, DamagedError):
            pass
        self.say(f"checkpoint '{file.with_suffix('')}' is damaged: using the previous one")
        return None


def _key_of(file: Path) -> object:
    """The key of the stage that a description belongs to; None where it is damaged."""
    try:
        return read_sealed(file, Description)["key"]
    except (OSError, DamagedError):
        return None


def packed(snapshot: "Snapshot") -> bytes:
    """Everything of a snapshot as the content of one safetensors file."""
    import torch
    from safetensors.torch import save

    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in snapshot.tensors.items()}
    values = torch.frombuffer(bytearray(json.dumps(snapshot.values).encode()), dtype=torch.uint8)
    return save({**tensors, VALUES: values})


def unpacked(content: bytes) -> "Snapshot":
    """Unpack what `packed` wrote."""
    from safetensors.torch import load

    from atopipe.ato.snapshot import Snapshot

    tensors = load(content)
    values = bytes(tensors.pop(VALUES).numpy())
    return Snapshot(tensors, json.loads(values))
