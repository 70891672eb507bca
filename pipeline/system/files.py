"""Files that are whole or not there, and hashes that tell whether they have changed."""

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pydantic import BaseModel

SEAL = "sha256"
LARGEST = 64 * 2**20  # bytes of a file that is read back


class DamagedError(Exception):
    """A file that is read back is not as it was written."""


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


def link_or_copy(source: Path, target: Path) -> None:
    """Makes `target`, which is not there, the same file as `source`, or a copy where the file system has no links."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


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


def read_sealed(path: Path, form: "type[BaseModel]") -> dict[str, Any]:
    """The object that `write_sealed` wrote; DamagedError if one byte is another, or it has not the fields of `form`."""
    content = read_ordinary(path)
    try:
        found = json.loads(content)
        seal = found.pop(SEAL)
        form.model_validate(found, strict=True)
        whole = seal == sha256_json(found) and content == _as_json({**found, SEAL: seal}).encode()
    except (ValueError, AttributeError, KeyError, TypeError, RecursionError):
        raise DamagedError(path) from None
    if not whole:
        raise DamagedError(path)
    return dict(found)


def read_ordinary(path: Path, largest: int = LARGEST) -> bytes:
    """The bytes of a file; DamagedError for a folder, a pipe, a broken link, or one of more than `largest` bytes."""
    if not path.is_file() and (path.is_symlink() or path.exists()):
        raise DamagedError(path)
    if path.stat().st_size > largest:
        raise DamagedError(path)
    return path.read_bytes()
