"""A packed copy of a class folder: WebDataset's shards, training photographs scaled down once, validation ones as is.

Shards are made one after the other, each by several threads, and a shard that is there is complete: an interrupted copy
goes on behind the last one. `pack.json` says what it is a copy of, and the digest of every shard.
"""

import io
import tarfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from pydantic import BaseModel

from atopipe.pipeline.data.decoding import opened
from atopipe.pipeline.data.preprocessing import ORIENTATION, to_rgb, upright
from atopipe.pipeline.system.errors import DataError
from atopipe.pipeline.system.files import DamagedError, read_sealed, sha256_file, write_sealed
from atopipe.pipeline.system.machine import available_processors

DESCRIPTION = "pack.json"
IN_A_SHARD = 10_000  # pictures
QUALITY = 90
AS_IS = frozenset({"RGB", "L"})  # modes of JPEG files that are copied byte by byte if they are small enough


class Description(BaseModel):
    """pack.json: the digest of what was copied, the short side, and the digest of each shard by its name."""

    source: str
    short_side: int
    shards: dict[str, str]


@dataclass(frozen=True)
class Part:
    """Pictures that go into the shards `name`-*.tar, with their classes; `scaled`: whether they may be scaled down."""

    name: str
    paths: Sequence[Path]
    labels: Sequence[int]
    scaled: bool


def make_pack(
    folder: Path, source: str, parts: Sequence[Part], short_side: int, on_progress: Callable[[int, int], None]
) -> None:
    """Writes what is missing of the copy in `folder`; DataError where that holds another one, or a damaged shard."""
    folder.mkdir(parents=True, exist_ok=True)
    done = _known(folder, source, short_side)
    total, seen = sum(len(part.paths) for part in parts), 0
    for part in parts:
        for number, start in enumerate(range(0, len(part.paths), IN_A_SHARD)):
            path = folder / f"{part.name}-{number:06d}.tar"
            chosen = range(start, min(start + IN_A_SHARD, len(part.paths)))
            if path.name not in done:
                _write_shard(path, part, chosen, short_side)
                done[path.name] = sha256_file(path)
                description = {"source": source, "short_side": short_side, "shards": done}
                write_sealed(folder / DESCRIPTION, description)
            seen += len(chosen)
            on_progress(seen, total)


def verify_pack(folder: Path) -> dict[str, str]:
    """The digests of the shards by their names, each read and compared; DataError for the first that differs."""
    try:
        shards: dict[str, str] = read_sealed(folder / DESCRIPTION, Description)["shards"]
    except (OSError, DamagedError):
        raise DataError(f"'{folder}' has no {DESCRIPTION} as 'atopipe pack' writes it: pack again") from None
    for name, digest in shards.items():
        if not (folder / name).is_file() or sha256_file(folder / name) != digest:
            raise DataError(f"shard '{folder / name}' is not as it was packed: remove it, and pack again")
    return shards


def _known(folder: Path, source: str, short_side: int) -> dict[str, str]:
    """The shards that are complete, and still have the size and digest that they were written with."""
    if not (folder / DESCRIPTION).exists():
        if any(folder.iterdir()):
            raise DataError(f"'{folder}' is not empty and no packed copy: choose another folder")
        return {}
    try:
        found = read_sealed(folder / DESCRIPTION, Description)
    except DamagedError:
        raise DataError(f"'{folder / DESCRIPTION}' is damaged: remove '{folder}', and pack again") from None
    if (found["source"], found["short_side"]) != (source, short_side):
        raise DataError(f"'{folder}' is a copy of other images, or at another short side: choose another folder")
    return {name: digest for name, digest in found["shards"].items() if (folder / name).is_file()}


def _write_shard(path: Path, part: Part, chosen: range, short_side: int) -> None:
    partial = path.with_suffix(".partial")
    with tarfile.open(partial, "w", format=tarfile.USTAR_FORMAT) as archive:
        for index, content in zip(chosen, _contents(part, chosen, short_side), strict=True):
            _add(archive, f"{index:09d}{'.jpg' if part.scaled else part.paths[index].suffix.lower()}", content)
            _add(archive, f"{index:09d}.cls", str(part.labels[index]).encode())
    partial.replace(path)


def _contents(part: Part, chosen: range, short_side: int) -> Iterator[bytes]:
    def content(index: int) -> bytes:
        return packed_picture(part.paths[index], short_side) if part.scaled else part.paths[index].read_bytes()

    pool = ThreadPoolExecutor(available_processors())
    try:
        for start in range(chosen.start, chosen.stop, 256):  # so many are in memory at a time
            yield from pool.map(content, range(start, min(start + 256, chosen.stop)))
    finally:
        pool.shutdown(cancel_futures=True)


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))


def packed_picture(path: Path, short_side: int) -> bytes:
    """A JPEG, upright and in RGB, whose shorter side has at most so many pixels; a small enough JPEG is not changed."""
    content = path.read_bytes()
    with opened(io.BytesIO(content), str(path)) as image:
        plain = image.format == "JPEG" and image.mode in AS_IS and image.getexif().get(ORIENTATION, 1) == 1
        if plain and min(image.size) <= short_side:
            return content
        picture, scale = to_rgb(upright(image)), short_side / min(image.size)
        if scale < 1:
            size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
            picture = picture.resize(size, Image.Resampling.BILINEAR)
        written = io.BytesIO()
        picture.save(written, "JPEG", quality=QUALITY)
        return written.getvalue()
