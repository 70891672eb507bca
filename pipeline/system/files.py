"""Files that are whole or not there, and hashes that tell whether they have changed."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

SEAL = "sha256"


class DamagedError(Exception):
    """A sealed file is not as it was written."""


def write_bytes(path: Path, content: bytes) -> None:
    """Writes `path` so that a reader sees the old or the new content, never a part, even after a crash."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, content: str) -> None:
    """As UTF-8; what of a file name has no place in it is written as an escape."""
    write_bytes(path, content.encode("utf-8", "backslashreplace"))


def write_json(path: Path, content: object) -> None:
    write_text(path, _as_json(content))


def _as_json(content: object) -> str:
    return json.dumps(content, indent=2, allow_nan=False) + "\n"


def files_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def sha256_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_bytes(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def sha256_json(content: object) -> str:
    """Of the canonical JSON: sorted keys, no spaces."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def write_sealed(path: Path, content: dict[str, Any]) -> None:
    """Writes a JSON object with its own digest as the last value."""
    write_json(path, {**content, SEAL: sha256_json(content)})


def read_sealed(path: Path) -> dict[str, Any]:
    """The object that `write_sealed` wrote; DamagedError if one byte of the file is another."""
    try:
        written = path.read_text(encoding="utf-8")
        content = json.loads(written)
        seal = content.pop(SEAL)
    except (ValueError, AttributeError, KeyError, TypeError):
        raise DamagedError(path) from None
    if seal != sha256_json(content) or written != _as_json({**content, SEAL: seal}):
        raise DamagedError(path)
    return dict(content)
