"""What a source answered: another answer is noticed, and what makes figures doubtful is counted."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from atopipe.pipeline.data.answer import answer, remarks, require_same
from atopipe.pipeline.data.dataset import Data
from atopipe.pipeline.data.load import load_data
from atopipe.pipeline.data.overlap import overlap
from atopipe.pipeline.data.sources import image_folder
from atopipe.pipeline.data.sources.arrays import LabelledImages, data_from_arrays
from atopipe.pipeline.system.errors import DataError


def noise(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 3, 8, 8), dtype=np.uint8)


def made(
    train: np.ndarray,
    val: np.ndarray,
    classes: str = "ab",
    labels: tuple[int, ...] = (0, 1),
    val_label: int | None = None,
) -> Data:
    numbers = [np.resize(np.array(labels), len(part)) for part in (train, val)]
    if val_label is not None:
        numbers[1][0] = val_label
    parts = [LabelledImages(part, number.astype(np.int64)) for part, number in zip((train, val), numbers, strict=True)]
    return data_from_arrays("made", "made", tuple(classes), *parts, input_size=None)


def folder(root: Path, pixels: dict[str, np.ndarray]) -> str:
    for name, images in pixels.items():
        (root / name).mkdir(parents=True)
        for number, image in enumerate(images):
            Image.fromarray(image.transpose(1, 2, 0)).save(root / name / f"{number:03}.png")
    return f"imagefolder:{root}"


def test_the_same_data_give_the_same_answer() -> None:
    assert answer(made(noise(20), noise(60, 1))) == answer(made(noise(20), noise(60, 1)))


@pytest.mark.parametrize(
    ("other", "name"),
    [
        (made(noise(20), noise(60, 1), classes="ba"), "class names"),
        (made(noise(20), noise(60, 1), labels=(1, 0)), "training labels"),
        (made(noise(20), noise(60, 1), val_label=1), "validation labels"),
        (made(noise(20), noise(60, 2)), "validation pixels"),
        (made(noise(21), noise(60, 1)), "training images"),
    ],
    ids=["names", "labels", "one label", "pixels", "count"],
)
def test_another_answer_is_refused_by_what_differs(other: Data, name: str) -> None:
    with pytest.raises(DataError) as caught:
        require_same("mod:f", answer(made(noise(20), noise(60, 1))), answer(other))
    assert str(caught.value).startswith(f"data 'mod:f' gives other {name} than the network was trained with: ")
    assert caught.value.exit_code == 2


def test_one_pixel_of_thousands_of_images_is_noticed() -> None:
    pixels = noise(3000)
    first = answer(made(pixels, noise(60, 1)))
    pixels[1234, 2, 7, 7] ^= 1
    assert answer(made(pixels, noise(60, 1))) != first


def test_images_in_both_parts_are_counted() -> None:
    train, val = noise(100), noise(80, 1)
    val[:30] = train[40:70]
    assert overlap(made(train, val))[:2] == (30, 80)
    assert overlap(made(train, noise(80, 1))) == (0, 80, 0, 100)
    words = "30 of 80 validation images are training images too: accuracy is overestimated"
    assert remarks(made(train, val)) == [words]


@pytest.mark.parametrize("on_disk", [False, True])
@pytest.mark.parametrize("side", [8, 100])
def test_files_in_both_parts_are_counted_from_memory_and_from_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, on_disk: bool, side: int
) -> None:
    """Large training images keep a margin in memory, and are the same pictures all the same."""
    numbers = np.random.default_rng(0)
    images = numbers.integers(0, 256, (12, 3, side, side), dtype=np.uint8)
    source = folder(
        tmp_path, {"train/a": images[:4], "train/b": images[4:8], "val/a": images[2:4], "val/b": images[8:]}
    )
    if on_disk:
        monkeypatch.setattr(image_folder, "available_memory", lambda: 0)
    assert overlap(load_data(source, seed=0)) == (2, 6, 0, 8)


def test_images_with_the_same_sum_are_told_apart() -> None:
    assert overlap(made(noise(10), noise(10)[:, :, ::-1].copy())) == (0, 10, 0, 10)


def test_training_images_under_two_labels_are_counted() -> None:
    """Labels go 0, 1, 0, 1: image 21 is image 0 under the other label, image 22 is image 2 under the same one."""
    train = noise(60)
    train[21], train[22], train[23] = train[0], train[2], train[0]
    assert overlap(made(train, noise(60, 1)))[2:] == (3, 60)
    words = "3 of 60 training images looked at are there under another label as well: correct their labels"
    assert remarks(made(train, noise(60, 1))) == [words]


@pytest.mark.parametrize("on_disk", [False, True])
def test_files_under_two_labels_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, on_disk: bool) -> None:
    images = noise(12)
    parts = {"train/a": images[:4], "train/b": images[2:8], "val/a": images[8:10], "val/b": images[10:]}
    if on_disk:
        monkeypatch.setattr(image_folder, "available_memory", lambda: 0)
    assert overlap(load_data(folder(tmp_path, parts), seed=0)) == (0, 4, 4, 10)


def test_of_many_training_images_some_are_looked_at() -> None:
    train = noise(4002)
    train[1::2] = train[::2]  # each image under both labels
    assert overlap(made(train, noise(60, 1)))[2:] == (2000, 2000)


def test_classes_without_images_and_few_images_are_told() -> None:
    found = remarks(made(noise(20), noise(1, 1), classes="abcd", val_label=2))
    assert found == [
        "no training images of class c, but 1 validation images",
        "no validation images of class a, b, but 20 training images",
        "1 of 4 classes have no images",
        "validation has only 1 image: accuracy is known to 98 points at best",
    ]


def test_images_of_a_single_colour_are_counted() -> None:
    train = noise(20)
    train[5], train[6], train[7] = 200, 201, 202
    assert remarks(made(train, noise(60, 1))) == ["3 of 20 training images looked at are of a single colour"]


def test_data_without_anything_odd_have_no_remark() -> None:
    assert remarks(load_data("digits", seed=0)) == []
    assert remarks(made(noise(20), noise(60, 1))) == []


def test_an_answer_is_of_the_pixels_whatever_their_layout() -> None:
    first = made(noise(20), noise(60, 1))
    assert first.train.images.pixels.is_contiguous()  # type: ignore[attr-defined]
    object.__setattr__(
        first.train.images, "pixels", torch.from_numpy(noise(20).transpose(0, 2, 3, 1).copy()).permute(0, 3, 1, 2)
    )
    assert answer(first) == answer(made(noise(20), noise(60, 1)))


def test_class_names_that_differ_by_case_or_form_only_are_told() -> None:
    classes = ("Cat", "cat", "dog", "\uff24og")
    data = replace(made(noise(20), noise(60, 1), classes="abcd", labels=(0, 1, 2, 3)), labels=classes)
    words = "classes Cat and cat, dog and \uff24og differ by the case or form of letters only: are they the same?"
    assert remarks(data) == [words]
