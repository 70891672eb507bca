"""The layout of an image folder: train/<class>/ and val/<class>/ or test/<class>/, and the images in it."""

import os
import time
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from atopipe.pipeline.data.source import FileState
from atopipe.pipeline.data.sources.file_list import FileList, Found
from atopipe.pipeline.system.errors import DataError, MissingDataError

SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})
# What operating systems, storage servers and editors leave in folders; hidden names begin with a dot.
HOUSEKEEPING = frozenset(
    {
        "$recycle.bin",
        "#recycle",
        "#snapshot",
        "@eadir",
        "@recently-snapshot",
        "@recycle",
        "@tmp",
        "__macosx",
        "__pycache__",
        "desktop.ini",
        "ehthumbs.db",
        "lost+found",
        "system volume information",
        "thumbs.db",
    }
)
SETTLED_NS = 2_000_000_000  # a folder younger than this may change again within one tick of the file system's clock
NAMED = 5  # kinds of unused files that are named


@dataclass(frozen=True)
class Files:
    """The images of one split, their class numbers, the classes, and what was found and is not used: kind -> count."""

    paths: FileList
    labels: "array[int]"
    classes: tuple[str, ...]
    unused: Mapping[str, int] = field(default_factory=dict)


@dataclass
class Scan:
    """One pass through a split: what is not used, and each folder that was read with the time of its last change."""

    unused: Counter[str] = field(default_factory=Counter)
    folders: dict[str, int] = field(default_factory=dict)

    def still_holds(self, before_ns: int) -> bool:
        """Whether no folder has changed, the last time long enough `before_ns` that a clock's tick cannot hide it."""
        try:
            times = [Path(folder).stat().st_mtime_ns for folder in self.folders]
        except OSError:
            return False
        return times == [*self.folders.values()] and max(times, default=0) < before_ns - SETTLED_NS


Splits = tuple[Files, Files]
_scanned: dict[Path, tuple[int, Splits, tuple[Scan, Scan]]] = {}  # the last folder only: when, what, and how


def known_splits(root: Path) -> Splits:
    """What `find_splits` gave in this process, if the folders are as they were; otherwise it looks again."""
    if root in _scanned:
        when, splits, scans = _scanned[root]
        if all(scan.still_holds(when) for scan in scans):
            return splits
    return find_splits(root)


def find_splits(root: Path) -> Splits:
    """Training and validation images; DataError where the folder is laid out otherwise."""
    layout = "train/<class>/ and val/<class>/"
    if not root.is_dir():
        raise MissingDataError(f"data folder '{root}' does not exist: give a folder with images in {layout}")
    if not any(root.iterdir()):
        raise MissingDataError(f"data folder '{root}' is empty: put images in {layout}")
    if not (root / "train").is_dir():
        raise MissingDataError(f"data folder '{root}' has no folder train: put images in {layout}")
    held_out = next((root / name for name in ("val", "test") if (root / name).is_dir()), None)
    if held_out is None:
        raise MissingDataError(f"data folder '{root}' has neither val nor test: put images in {layout}")
    when, scans = time.time_ns(), (Scan(), Scan())
    splits = _scan(root / "train", scans[0]), _scan(held_out, scans[1])
    _check_classes(*splits, root / "train", held_out)
    _scanned.clear()
    _scanned[root] = when, splits, scans
    return splits


def _check_classes(train: Files, val: Files, train_folder: Path, val_folder: Path) -> None:
    differing = [
        f"only '{folder}' has {', '.join(sorted(extra))}"
        for folder, extra in (
            (train_folder, set(train.classes) - set(val.classes)),
            (val_folder, set(val.classes) - set(train.classes)),
        )
        if extra
    ]
    if differing:
        raise DataError(f"the classes differ: {' and '.join(differing)}; give both the same class folders")
    if len(train.classes) < 2:
        raise DataError(f"'{train_folder}' has the single class {train.classes[0]}: a classifier needs two or more")


def _scan(folder: Path, scan: Scan) -> Files:
    unused = scan.unused
    scan.folders[str(folder)] = folder.stat().st_mtime_ns
    classes = sorted(entry.name for entry in _entries(folder, unused) if _is_class(entry, unused))
    if not classes:
        raise MissingDataError(f"'{folder}' has no class folders: put images in {folder.name}/<class>/")
    files, labels = FileList(folder), array("q")
    for label, name in enumerate(classes):
        images = sorted(_images(folder, name, scan, ()), key=lambda state: state[0].replace("/", "\0"))
        if not images:
            raise MissingDataError(_without_images(folder / name, unused))
        names, sizes, times = zip(*images, strict=True)
        files.add(Found(names, array("q", sizes), array("q", times)))
        labels.extend([label] * len(images))
    return Files(files, labels, tuple(classes), dict(unused))


def _without_images(folder: Path, unused: Counter[str]) -> str:
    have = f", only {described(unused)}" if unused else ""
    kinds = ", ".join(sorted(SUFFIXES))
    return f"class folder '{folder}' has no images ({kinds}){have}: add some or remove the folder"


def _is_class(entry: "os.DirEntry[str]", unused: Counter[str]) -> bool:
    """Whether the entry of a split is the folder of a class; other files there are not used."""
    if not _is_folder(entry):
        unused["outside class folders"] += 1
    return _is_folder(entry)


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    """Links are followed; unlike the entry itself, the path takes a link to itself for no folder."""
    return Path(entry.path).is_dir() if entry.is_symlink() else entry.is_dir()


def _images(root: Path, name: str, scan: Scan, above: tuple[tuple[int, int], ...]) -> Iterator[FileState]:
    """The images in folder `name` and below, by names from `root`, links followed; `above` ends circles of links."""
    here, unused = (root / name).stat(), scan.unused
    scan.folders[str(root / name)] = here.st_mtime_ns
    if (here.st_dev, here.st_ino) in above:
        unused["links to a folder around them"] += 1
        return
    for entry in _entries(root / name, unused):
        path = f"{name}/{entry.name}"
        if _is_folder(entry):
            yield from _images(root, path, scan, (*above, (here.st_dev, here.st_ino)))
        elif not (Path(entry.path).is_file() if entry.is_symlink() else entry.is_file()):
            unused["dangling links" if entry.is_symlink() else "special files"] += 1
        elif entry.name[entry.name.rfind(".") :].lower() in SUFFIXES:
            state = entry.stat()
            yield FileState(path, state.st_size, state.st_mtime_ns)
        else:
            unused[Path(entry.name).suffix.lower() or "without a suffix"] += 1


def _entries(folder: Path, unused: Counter[str]) -> Iterator["os.DirEntry[str]"]:
    """What lies in a folder but for housekeeping; a folder that may not be read counts as not used."""
    try:
        with os.scandir(folder) as entries:
            found = list(entries)
    except PermissionError:
        unused["unreadable folders"] += 1
        return
    yield from (e for e in found if not e.name.startswith(".") and e.name.lower() not in HOUSEKEEPING)


def described(unused: Mapping[str, int]) -> str:
    """`12 files: 8 .heic, 4 dangling links`; the commonest kinds first, those beyond `NAMED` as others."""
    ordered = sorted(unused.items(), key=lambda item: (-item[1], item[0]))
    others = sum(count for _, count in ordered[NAMED:])
    kinds = [*ordered[:NAMED], *([("others", others)] if others else [])]
    total = sum(unused.values())
    return f"{total:,} {'file' if total == 1 else 'files'}: {', '.join(f'{count:,} {kind}' for kind, count in kinds)}"
