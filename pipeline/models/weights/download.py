"""Weights that are not on this machine yet: fetched by the library that names them, where there is a network."""

import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from atopipe.pipeline.models.weights.source import WeightsSource
from atopipe.pipeline.system.errors import MissingError

PATIENCE = 5.0  # seconds for a server to answer at all
SILENCE = 30.0  # seconds without a byte after which a download is given up


def fetch(source: WeightsSource) -> None:
    """Puts the weights into the cache of their library; MissingError says where they belong and how to put them there.

    The server is asked for a sign of life first: the libraries would try again and again for half a minute.
    """
    if source.forbidden:
        raise MissingError(_absent(source, f"and {source.forbidden} forbids the download"))
    if not _answers(source.address):
        raise MissingError(_absent(source, "and their server cannot be reached"))
    try:
        with _limited_silence():
            source.fetch()
    except Exception as error:  # libraries for networks raise many kinds
        raise MissingError(_absent(source, f"and cannot be downloaded ({type(error).__name__})")) from error


def download(address: str, path: Path) -> None:
    """Fetches a file as torch.hub does: under another name first, its digest compared where its name holds one."""
    from torch import hub

    path.parent.mkdir(parents=True, exist_ok=True)
    digest = hub.HASH_REGEX.search(path.name)
    hub.download_url_to_file(address, str(path), digest[1] if digest else None, progress=sys.stderr.isatty())


def _absent(source: WeightsSource, why: str) -> str:
    return f"weights {source.key} are not in '{source.file}' {why}: {source.remedy}, or give {source.option} FILE"


def _answers(address: str) -> bool:
    """Whether a server answers in time, whatever it says; looking up its name may take longer than any time limit."""
    answers: list[bool] = []
    thread = threading.Thread(target=lambda: answers.append(_asked(address)), daemon=True)
    thread.start()
    thread.join(PATIENCE)
    return answers == [True]


def _asked(address: str) -> bool:
    try:
        urlopen(Request(address, method="HEAD"), timeout=PATIENCE).close()  # noqa: S310 (of the libraries' tables)
    except HTTPError:
        return True
    except (OSError, ValueError):
        return False
    return True


@contextmanager
def _limited_silence() -> Iterator[None]:
    """While active, new connections end that say nothing for long: torch.hub sets no limit."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(SILENCE)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
