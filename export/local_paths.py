"""Finds what a file that is handed over must not tell: where on this machine it was made."""

import os
import re
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch


def find_local_path(message: Any) -> str | None:
    """Return the first local path in the texts of a protobuf message and where it stands, in words, or None.

    A folder counts only as a whole path: `/work` is not in `block/workspace`.
    """
    alternatives = "|".join(re.escape(folder) for folder in local_folders())
    pattern = re.compile(rf"(?<![\w.])(?:{alternatives})(?![\w.-])")
    for text in _texts(message):
        if found := pattern.search(text):
            return f"the local path '{found[0]}' in '{text[:80]}'"
    return None


def local_folders() -> tuple[str, ...]:
    """Return the folders of this machine whose names have no place in a file that is handed over."""
    home = Path(os.environ.get("HOME", sys.prefix))
    libraries = Path(torch.__file__).parents[1]
    folders = {Path.cwd(), home, libraries, Path(sys.prefix), Path(tempfile.gettempdir())}
    return tuple(sorted(str(folder) for folder in folders if folder != Path(folder.anchor)))


def _texts(message: Any) -> Iterator[str]:
    """Yield every text in a protobuf message; the weights' raw bytes are none."""
    for field, value in message.ListFields():
        if field.type == field.TYPE_MESSAGE:
            for part in parts(value):
                yield from _texts(part)
        elif field.type == field.TYPE_STRING:
            yield from parts(value)
        elif field.type == field.TYPE_BYTES and field.name != "raw_data":
            yield from (part.decode("utf-8", "replace") for part in parts(value))


def parts(value: Any) -> Iterable[Any]:
    """Return the messages or scalars of a protobuf field, be it repeated or not."""
    return (value,) if hasattr(value, "ListFields") or isinstance(value, str | bytes) else value
