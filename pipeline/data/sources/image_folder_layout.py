"""The layout of an image folder: train/<class>/ and val/<class>/ or test/<class>/, and the images in it."""

from dataclasses import dataclass
from pathlib import Path

from atopipe.pipeline.system.errors import DataError, MissingDataError

SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})


@dataclass(frozen=True)
class Files:
    """The images of one split, their class numbers, and the classes."""

    paths: tuple[Path, ...]
    labels: tuple[int, ...]
    classes: tuple[str, ...]


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
    classes = sorted(entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if not classes:
        raise MissingDataError(f"'{folder}' has no class folders: put images in {folder.name}/<class>/")
    found = [_images(folder) for folder in classes]
    return Files(
        paths=tuple(path for paths in found for path in paths),
        labels=tuple(label for label, paths in enumerate(found) for _ in paths),
        classes=tuple(folder.name for folder in classes),
    )


def _images(folder: Path) -> list[Path]:
    paths = [
        p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and not p.name.startswith(".") and p.is_file()
    ]
    if not paths:
        kinds = ", ".join(sorted(SUFFIXES))
        raise MissingDataError(f"class folder '{folder}' has no images ({kinds}): add some or remove the folder")
    return sorted(paths)
