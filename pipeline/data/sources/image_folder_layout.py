"""The layout of an image folder: train/<class>/ and val/<class>/ or test/<class>/, and the images in it."""

import os
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import overload

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
NAMED = 5  # kinds of unused files that are named


class FileList(Sequence[Path]):
    """Files below a folder, in two flat arrays: a million of them take the bytes of their names and no objects."""

    def __init__(self, root: Path, names: Sequence[str]) -> None:
        self.root = root
        self._names = b"".join(map(os.fsencode, names))
        self._ends = array("q", [0])
        for name in names:
            self._ends.append(self._ends[-1] + len(os.fsencode(name)))

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, index: int) -> Path: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Path]: ...
    def __getitem__(self, index: int | slice) -> Path | Sequence[Path]:
        if isinstance(index, slice):
            return [self[position] for position in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        position = index % len(self)
        return self.root / os.fsdecode(self._names[self._ends[position] : self._ends[position + 1]])


@dataclass(frozen=True)
class Files:
    """The images of one split, their class numbers, the classes, and what was found and is not used: kind -> count."""

    paths: FileList
    labels: "array[int]"
    classes: tuple[str, ...]
    unused: Mapping[str, int] = field(default_factory=dict)


def find_splits(root: Path) -> tuple[Files, Files]:
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
    train, val = _scan(root / "train"), _scan(held_out)
    _check_classes(train, val, root / "train", held_out)
    return train, val


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


def _scan(folder: Path) -> Files:
    unused: Counter[str] = Counter()
    classes = sorted(entry.name for entry in _entries(folder, unused) if _is_class(entry, unused))
    if not classes:
        raise MissingDataError(f"'{folder}' has no class folders: put images in {folder.name}/<class>/")
    names: list[str] = []
    labels = array("q")
    for label, name in enumerate(classes):
        images = sorted(_images(folder, name, unused, ()), key=lambda path: path.split("/"))
        if not images:
            raise MissingDataError(_without_images(folder / name, unused))
        names += images
        labels.extend([label] * len(images))
    return Files(FileList(folder, names), labels, tuple(classes), dict(unused))


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
    return Path(entry.path).is_dir()  # unlike the entry itself, it takes a link to itself for no folder


def _images(root: Path, name: str, unused: Counter[str], above: tuple[tuple[int, int], ...]) -> Iterator[str]:
    """Names from `root` of the images in folder `name` and below, links followed; `above` ends circles of links."""
    here = (root / name).stat()
    if (here.st_dev, here.st_ino) in above:
        unused["links to a folder around them"] += 1
        return
    for entry in _entries(root / name, unused):
        path = f"{name}/{entry.name}"
        if _is_folder(entry):
            yield from _images(root, path, unused, (*above, (here.st_dev, here.st_ino)))
        elif not Path(entry.path).is_file():
            unused["dangling links" if entry.is_symlink() else "special files"] += 1
        elif Path(entry.name).suffix.lower() in SUFFIXES:
            yield path
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
