"""The bundle as files: checksums, and a .zip whose bytes depend on the files in it alone."""

import zipfile
from pathlib import Path

from atopipe.pipeline.system.files import files_in, sha256_file, write_text

SUMS = "SHA256SUMS"
FIRST_DAY = (1980, 1, 1, 0, 0, 0)  # the oldest time a .zip can hold: the time of writing says nothing
READABLE = 0o644 << 16


def write_sums(folder: Path) -> None:
    """One line per file of `folder`, as `sha256sum --check` reads it."""
    names = [file.relative_to(folder).as_posix() for file in files_in(folder) if file.name != SUMS]
    write_text(folder / SUMS, "".join(f"{sha256_file(folder / name)}  {name}\n" for name in names))


def write_zip(folder: Path, path: Path) -> None:
    """The files of `folder`, in order of their names, below a folder that is named like the archive."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=6) as archive:
        for file in files_in(folder):
            entry = zipfile.ZipInfo(f"{path.stem}/{file.relative_to(folder).as_posix()}", FIRST_DAY)
            entry.compress_type, entry.external_attr = zipfile.ZIP_DEFLATED, READABLE
            entry.create_system = 3  # the same on every system
            archive.writestr(entry, file.read_bytes())
