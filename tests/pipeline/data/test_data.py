"""Data sets: the pixels that arrive, their order, and the exact words where there are none."""

import json
import os
import resource
import shutil
import struct
import sys
import weakref
import zlib
from array import array
from functools import partial
from itertools import islice, pairwise
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from PIL import Image, ImageOps
from torch.nn.functional import interpolate

from atopipe.pipeline.data.augment import Augmentation, pad_crop_flip, resized_crop_flip, unchanged
from atopipe.pipeline.data.dataset import Batches, Data, Share, Split, stratified
from atopipe.pipeline.data.decoding import read_pixels, read_size
from atopipe.pipeline.data.load import SOURCES, load_data, source_names
from atopipe.pipeline.data.preprocessing import Preprocessing, UnsupportedImageError, preprocess, to_pixels
from atopipe.pipeline.data.sources import image_folder, image_folder_layout
from atopipe.pipeline.data.sources.file_list import FileList, Found
from atopipe.pipeline.data.sources.image_folder_layout import find_splits, known_splits
from atopipe.pipeline.data.stores import InMemory
from atopipe.pipeline.system.errors import DataError, MissingDataError

Folders = dict[str, int]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def picture(seed: int, width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def write_folder(root: Path, counts: Folders, width: int = 12, height: int = 12, suffix: str = "png") -> str:
    """`counts`: images per "split/class"; returns the source."""
    for number, (folder, count) in enumerate(counts.items()):
        (root / folder).mkdir(parents=True)
        for index in range(count):
            picture(100 * number + index, width, height).save(root / folder / f"{index:03}.{suffix}")
    return f"imagefolder:{root}"


TWO_CLASSES = {"train/cat": 5, "train/dog": 6, "val/cat": 2, "val/dog": 3}


@pytest.fixture(scope="module")
def digits() -> Data:
    return load_data("digits", seed=0)


@pytest.fixture
def from_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """No image set fits into this memory."""
    monkeypatch.setattr(image_folder, "available_memory", lambda: 0)


def everything(batches: Batches) -> tuple[torch.Tensor, torch.Tensor]:
    images, labels = zip(*batches, strict=True)
    return torch.cat(images), torch.cat(labels)


# digits


def test_digits_are_split_in_the_same_shares_of_each_class(digits: Data) -> None:
    assert (len(digits.train), len(digits.val)) == (1437, 360)
    assert digits.description == (
        "digits: 1,797 scans of handwritten digits that come with scikit-learn, 10 classes, 32x32 pixels "
        "(1,437 for training, 360 for validation)"
    )
    shares = [np.bincount(split.labels, minlength=10) / len(split) for split in (digits.train, digits.val)]
    assert np.abs(shares[0] - shares[1]).max() < 0.003


def test_digits_are_sklearns_scans_resized_with_every_scan_in_one_split(digits: Data) -> None:
    from sklearn.datasets import load_digits

    scans, labels = load_digits(return_X_y=True)
    got = {}
    for split in (digits.train, digits.val):
        images, classes = everything(split.batches(500, device="cpu"))
        got.update({i.numpy().tobytes(): int(c) for i, c in zip(images, classes, strict=True)})
    wanted = {}
    for scan, label in zip(scans, labels, strict=True):
        image = Image.fromarray(np.round(scan.reshape(8, 8) * (255 / 16)).astype(np.uint8))
        wanted[preprocess(image, digits.preprocessing).tobytes()] = int(label)
    assert got == wanted


def test_digits_split_follows_the_seed(digits: Data) -> None:
    again, other = load_data("digits", seed=0), load_data("digits", seed=1)
    assert torch.equal(again.val.labels, digits.val.labels)
    assert not torch.equal(other.val.labels, digits.val.labels)


def test_training_images_are_normalised_to_mean_0_and_deviation_1(digits: Data) -> None:
    images, _ = everything(digits.train.batches(64, device="cpu", generator=seeded(), augment=unchanged))
    assert images.dtype == torch.float32
    assert images.double().mean((0, 2, 3)).abs().max() < 1e-4
    assert (images.double().std((0, 2, 3)) - 1).abs().max() < 1e-4


def test_digits_take_another_size_and_fraction() -> None:
    data = load_data("digits", seed=0, input_size=16, val_fraction=0.5)
    assert (len(data.val), data.preprocessing.size) == (899, (16, 16))
    with pytest.raises(DataError, match=r"^a validation fraction of 0\.001 is impossible with digits: use 0\.2$"):
        load_data("digits", seed=0, val_fraction=0.001)


# batches


@pytest.fixture
def small() -> Split:
    """101 images of noise, labelled by their number."""
    pixels = torch.randint(256, (101, 3, 6, 6), generator=seeded(), dtype=torch.uint8)
    preprocessing = Preprocessing((6, 6), (6, 6), (0.4, 0.5, 0.6), (0.2, 0.3, 0.4))
    return Split(InMemory(pixels), torch.arange(101), preprocessing, partial(pad_crop_flip, padding=1))


def test_batches_shuffle_anew_in_each_epoch_and_cover_every_image(small: Split) -> None:
    batches = small.batches(20, device="cpu", generator=seeded())
    first, second = list(batches), list(batches)
    assert len(batches) == len(first) == 5
    orders = [torch.cat([labels for _, labels in epoch]) for epoch in (first, second)]
    assert not torch.equal(*orders)
    assert all(len(order.unique()) == 100 for order in orders)


def test_every_image_keeps_its_label(small: Split) -> None:
    plainly, _ = everything(small.batches(101, device="cpu"))
    images, labels = everything(small.batches(10, device="cpu", generator=seeded(), augment=unchanged))
    assert torch.equal(images, plainly[labels])


def test_evaluation_is_in_order_and_complete(small: Split) -> None:
    images, labels = everything(small.batches(7, device="cpu"))
    assert torch.equal(labels, small.labels)
    assert torch.equal(images, everything(small.batches(1000, device="cpu"))[0])


@pytest.mark.parametrize(("size", "count", "images"), [(100, 1, 100), (33, 4, 101), (9, 12, 101), (50, 2, 100)])
def test_a_last_batch_of_one_image_is_left_out_of_training_only(
    small: Split, size: int, count: int, images: int
) -> None:
    batches = small.batches(size, device="cpu", generator=seeded())
    assert len(batches) == len(list(batches)) == count
    assert len(everything(batches)[1]) == images
    assert len(everything(small.batches(size, device="cpu"))[1]) == 101


def test_an_epoch_resumes_from_the_generators_state_and_a_position(small: Split) -> None:
    generator = seeded()
    batches = small.batches(16, device="cpu", generator=generator)
    everything(batches)
    state = generator.get_state()
    uninterrupted = list(batches)
    restored = torch.Generator()
    restored.set_state(state)
    resumed = islice(small.batches(16, device="cpu", generator=restored), 3, None)
    for (images, labels), (images_again, labels_again) in zip(uninterrupted[3:], resumed, strict=True):
        assert torch.equal(images, images_again)
        assert torch.equal(labels, labels_again)
    assert torch.equal(generator.get_state(), restored.get_state())


def test_numbers_drawn_while_an_epoch_runs_do_not_change_it(small: Split) -> None:
    generator = seeded()
    disturbed = []
    for images, _ in small.batches(16, device="cpu", generator=generator):
        torch.rand(3, generator=generator)
        disturbed.append(images)
    calm, _ = everything(small.batches(16, device="cpu", generator=seeded()))
    assert torch.equal(torch.cat(disturbed), calm)


@pytest.mark.parametrize(("size", "sizes"), [(24, [12, 12, 12, 12, 2]), (20, [10] * 5), (98, [49])])
def test_two_processes_share_every_batch_in_the_same_order(small: Split, size: int, sizes: list[int]) -> None:
    """A rest that is too small for two in each process is left out, and so is an odd image."""
    whole = [labels for _, labels in small.batches(size, device="cpu", generator=seeded())]
    shares = [small.batches(size, device="cpu", generator=seeded(), share=Share(index, 2)) for index in (0, 1)]
    assert len(shares[0]) == len(shares[1]) == len(sizes)
    for batch, (_, first), (_, second), count in zip(whole, *shares, sizes, strict=False):
        assert len(first) == len(second) == count
        assert torch.equal(torch.cat([first, second]), batch[: 2 * count])
    plainly, _ = everything(small.batches(101, device="cpu"))
    images, labels = everything(
        small.batches(24, device="cpu", generator=seeded(), augment=unchanged, share=Share(1, 2))
    )
    assert torch.equal(images, plainly[labels])


@pytest.mark.parametrize(("count", "size"), [(2, 24), (3, 16), (8, 4), (128, 64)])
def test_processes_validate_every_image_once_with_their_part_of_the_batch_size(
    small: Split, count: int, size: int
) -> None:
    """Even if there are fewer images than processes, or a batch has less than one image for each."""
    shares = [list(small.batches(size, device="cpu", share=Share(index, count))) for index in range(count)]
    assert torch.equal(torch.cat([labels for share in shares for _, labels in share]), small.labels)
    assert max(len(labels) for share in shares for _, labels in share) <= max(1, size // count)
    lengths = [len(small.batches(size, device="cpu", share=Share(index, count))) for index in range(count)]
    assert lengths == [len(share) for share in shares]


def test_a_copy_on_the_device_lives_no_longer_than_the_batches(small: Split) -> None:
    """Shown on torch's meta device, which is one that is not the CPU everywhere."""
    batches = small.batches(20, device="meta")
    store = batches.split.images
    assert isinstance(store, InMemory)
    copied = weakref.ref(store.pixels)
    assert store.pixels.is_meta
    assert isinstance(small.images, InMemory)
    assert not small.images.pixels.is_meta
    del batches, store
    assert copied() is None


def test_processes_augment_their_shares_differently(small: Split) -> None:
    def noise(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        return torch.rand(images.shape, generator=generator)

    shares = [small.batches(20, device="cpu", generator=seeded(), augment=noise, share=Share(i, 2)) for i in (0, 1)]
    seen = {image.numpy().tobytes() for share in shares for images, _ in share for image in images}
    assert len(seen) == 100


def test_each_batch_of_each_epoch_has_random_numbers_of_its_own(small: Split) -> None:
    def noise(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        return torch.rand(images.shape, generator=generator)

    batches = small.batches(20, device="cpu", generator=seeded(), augment=noise)
    seen = [image.numpy().tobytes() for _ in range(2) for images, _ in batches for image in images]
    assert len(set(seen)) == len(seen) == 200


def test_the_splits_own_augmentation_is_used_unless_another_is_given(small: Split) -> None:
    def first(augment: Augmentation | None) -> torch.Tensor:
        return next(iter(small.batches(8, device="cpu", generator=seeded(), augment=augment)))[0]

    assert torch.equal(first(None), first(small.augmentation))
    assert not torch.equal(first(None), first(unchanged))


def test_batch_larger_than_the_training_set(small: Split) -> None:
    with pytest.raises(DataError) as caught:
        small.batches(2000, device="cpu", generator=seeded())
    assert str(caught.value) == (
        "batch size 2000 is larger than the training set of 101 images: lower --batch-size to 101 or less"
    )


# subsets


def test_subset_has_every_class_in_its_share_and_leaves_validation_alone(digits: Data) -> None:
    subset = digits.subset(301, seeded())
    counts = np.bincount(subset.train.labels, minlength=10)
    shares = np.bincount(digits.train.labels, minlength=10) * 301 / len(digits.train)
    assert counts.sum() == len(subset.train) == 301
    assert np.abs(counts - shares).max() < 1
    assert subset.val is digits.val
    assert subset.preprocessing == digits.preprocessing
    assert subset.description == f"{digits.description}, 301 of them used for training"


def test_subset_keeps_images_with_their_labels_and_follows_the_generator(small: Split) -> None:
    data = Data("noise", "noise", ("a", "b"), small.preprocessing, small, small)
    images, numbers = everything(small.batches(101, device="cpu"))
    chosen, labels = everything(data.subset(40, seeded()).train.batches(7, device="cpu"))
    assert torch.equal(chosen, images[labels])
    assert len(labels.unique()) == 40
    assert torch.equal(labels, data.subset(40, seeded()).train.labels)
    assert not torch.equal(labels, data.subset(40, seeded(1)).train.labels)
    assert torch.equal(data.subset(101, seeded()).train.labels, numbers)


@pytest.mark.parametrize("count", [1, 102])
def test_subset_of_an_impossible_size(small: Split, count: int) -> None:
    data = Data("noise", "noise", ("a", "b"), small.preprocessing, small, small)
    with pytest.raises(
        DataError, match=rf"^a subset of {count} training images is impossible: noise has 101, choose 2"
    ):
        data.subset(count, seeded())


def test_every_random_choice_of_a_stratified_sample_is_as_likely() -> None:
    labels = torch.tensor([0] * 4 + [1] * 8)
    counts = torch.zeros(12)
    for seed in range(2000):
        counts[stratified(labels, 6, seeded(seed))] += 1
    assert (counts / 2000 - 0.5).abs().max() < 0.05


# imagefolder


def check_pixels(data: Data, root: Path, names: tuple[str, str]) -> None:
    """Both splits, unaugmented, hold exactly what `preprocess` makes of the files, in the order of the names."""
    for split, name in zip((data.train, data.val), names, strict=True):
        paths = sorted((root / name).glob("*/*"))
        wanted = np.stack([preprocess(Image.open(path), data.preprocessing) for path in paths])
        images, labels = everything(split.batches(4, device="cpu"))
        np.testing.assert_allclose(images.numpy(), wanted, rtol=0, atol=1e-6)
        assert [data.labels[label] for label in labels] == [path.parent.name for path in paths]


def test_small_images_keep_their_size_and_their_pixels(tmp_path: Path) -> None:
    data = load_data(write_folder(tmp_path, TWO_CLASSES), seed=0)
    assert data.labels == ("cat", "dog")
    assert data.preprocessing.size == data.preprocessing.resize == (12, 12)
    assert data.description == (
        f"imagefolder '{tmp_path}': 11 images for training and 5 for validation, 2 classes, 12x12 pixels"
    )
    check_pixels(data, tmp_path, ("train", "val"))


def test_statistics_are_those_of_the_training_images(tmp_path: Path) -> None:
    data = load_data(write_folder(tmp_path, TWO_CLASSES), seed=0)
    pixels = np.stack([np.asarray(Image.open(path)) for path in tmp_path.glob("train/*/*")]) / 255
    np.testing.assert_allclose(data.preprocessing.mean, pixels.mean((0, 1, 2)), atol=1e-6)
    np.testing.assert_allclose(data.preprocessing.std, pixels.std((0, 1, 2)), atol=1e-6)


@pytest.mark.parametrize(("width", "height"), [(301, 240), (90, 133), (70, 70)])
def test_large_images_are_scaled_and_cropped_the_same_in_both_splits(tmp_path: Path, width: int, height: int) -> None:
    counts = {"train/a": 2, "train/b": 1, "test/a": 1, "test/b": 1}
    data = load_data(write_folder(tmp_path, counts, width, height, "jpg"), seed=0)
    assert (data.preprocessing.size, data.preprocessing.resize) == ((224, 224), (256, 256))
    check_pixels(data, tmp_path, ("train", "test"))
    augmented, _ = next(iter(data.train.batches(3, device="cpu", generator=seeded())))
    assert augmented.shape == (3, 3, 224, 224)


def test_input_size_is_obeyed(tmp_path: Path) -> None:
    data = load_data(write_folder(tmp_path, TWO_CLASSES, 50, 40), seed=0, input_size=24)
    assert data.preprocessing.size == (24, 24)
    check_pixels(data, tmp_path, ("train", "val"))


def first_images(data: Data, augment: Augmentation | None = None) -> torch.Tensor:
    return next(iter(data.train.batches(8, device="cpu", generator=seeded(), augment=augment)))[0]


def test_photos_are_cropped_as_mildly_as_is_asked_for(tmp_path: Path) -> None:
    source = write_folder(tmp_path, TWO_CLASSES)
    mild, usual = load_data(source, seed=0, least_crop=0.5), load_data(source, seed=0)
    by_hand = partial(resized_crop_flip, size=(12, 12), area=(0.5, 1.0))
    assert torch.equal(first_images(mild), first_images(usual, by_hand))
    assert not torch.equal(first_images(mild), first_images(usual))


def test_digits_are_never_mirrored(digits: Data) -> None:
    assert torch.equal(first_images(load_data("digits", seed=0, least_crop=0.5)), first_images(digits))


def test_images_read_from_disk_are_the_same_as_from_memory(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    source = write_folder(tmp_path, TWO_CLASSES, 80, 70)
    memory = load_data(source, seed=0, input_size=72)
    request.getfixturevalue("from_disk")
    disk = load_data(source, seed=0, input_size=72)
    assert disk.preprocessing == memory.preprocessing
    check_pixels(disk, tmp_path, ("train", "val"))
    for a, b in zip(*(data.train.batches(4, device="cpu", generator=seeded()) for data in (memory, disk)), strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.usefixtures("from_disk")
def test_reading_from_disk_leaves_the_global_generator_alone(tmp_path: Path) -> None:
    data = load_data(write_folder(tmp_path, TWO_CLASSES), seed=0)
    before = torch.get_rng_state()
    everything(data.train.batches(4, device="cpu", generator=seeded()))
    assert torch.equal(before, torch.get_rng_state())


def test_progress_goes_over_both_splits_and_ends_at_all(tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    counts = {"train/a": 100, "train/b": 50, "val/a": 1, "val/b": 1}
    load_data(write_folder(tmp_path, counts, 4, 4), seed=0, on_progress=lambda *done: calls.append(done))
    assert calls[-1] == (152, 152)
    assert all(a < b for a, b in pairwise(calls))


LEFTOVERS = [
    "train/cat/._000.png",
    "train/.cache/000.png",
    "train/cat/.ipynb_checkpoints/000-checkpoint.png",
    "train/cat/nested/.thumbnails/000.png",
    "train/cat/@eaDir/000.png/SYNOPHOTO_THUMB_M.png",
    "train/__MACOSX/cat/000.png",
    "train/cat/__MACOSX/000.png",
    "val/$RECYCLE.BIN/000.png",
    "val/cat/Thumbs.db",
    "val/cat/desktop.ini",
    "val/lost+found/000.png",
    "val/.DS_Store",
]


@pytest.mark.parametrize("name", LEFTOVERS)
def test_what_is_hidden_or_left_by_systems_is_no_data_at_any_depth(tmp_path: Path, name: str) -> None:
    source = write_folder(tmp_path, TWO_CLASSES)
    before = load_data(source, seed=0).description
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    picture(0, 12, 12).save(tmp_path / name, format="PNG")
    data = load_data(source, seed=0)
    assert (len(data.train), len(data.val), data.description) == (11, 5, before)
    assert set(SOURCES["imagefolder"].files(str(tmp_path)).values()) == {
        *tmp_path.glob("*/cat/0*.png"),
        *tmp_path.glob("*/dog/0*.png"),
    }


def test_what_is_not_used_is_counted_in_one_line(tmp_path: Path) -> None:
    source = write_folder(tmp_path, TWO_CLASSES)
    for name in ("cat/a.heic", "cat/b.HEIC", "cat/c.jfif", "cat/README", "dog/deep/d.txt", "stray.png"):
        (tmp_path / "train" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "train" / name).write_bytes(b"x")
    (tmp_path / "val/cat/gone.png").symlink_to(tmp_path / "nowhere")
    (tmp_path / "val/cat/round.png").symlink_to("round.png")
    os.mkfifo(tmp_path / "val/cat/pipe.png")
    data = load_data(source, seed=0)
    assert (len(data.train), len(data.val)) == (11, 5)
    assert data.description.endswith(
        "; not used: 9 files: 2 .heic, 2 dangling links, 1 .jfif, 1 .txt, 1 outside class folders, 2 others"
    )


def test_links_to_folders_and_images_are_followed_and_circles_end(tmp_path: Path) -> None:
    source = write_folder(tmp_path / "a", TWO_CLASSES)
    write_folder(tmp_path / "b", {"more": 4})
    (tmp_path / "a/train/cat/linked").symlink_to(tmp_path / "b/more")
    (tmp_path / "a/train/cat/linked.png").symlink_to(tmp_path / "b/more/000.png")
    (tmp_path / "a/train/cow").symlink_to(tmp_path / "b/more")
    (tmp_path / "a/val/cow").symlink_to(tmp_path / "b/more")
    (tmp_path / "a/train/dog/up").symlink_to(tmp_path / "a/train/dog")
    data = load_data(source, seed=0)
    assert data.labels == ("cat", "cow", "dog")
    assert data.train.labels.bincount().tolist() == [5 + 4 + 1, 4, 6]
    assert data.description.endswith("; not used: 1 file: 1 links to a folder around them")


def test_a_class_whose_images_have_other_suffixes_says_which(tmp_path: Path) -> None:
    source = write_folder(tmp_path, TWO_CLASSES)
    for image in (tmp_path / "val/cat").glob("*.png"):
        image.rename(image.with_suffix(".heic"))
    assert ", only 2 files: 2 .heic: add some or remove the folder" in refused(source, MissingDataError, 5)


def test_file_names_that_are_no_utf8_are_read_like_others(tmp_path: Path) -> None:
    source = write_folder(tmp_path, TWO_CLASSES)
    os.rename(tmp_path / "train/cat/000.png", os.path.join(os.fsencode(tmp_path), b"train/cat/caf\xe9.png"))  # noqa: PTH104, PTH118
    assert len(load_data(source, seed=0).train) == 11
    assert len(SOURCES["imagefolder"].files(str(tmp_path))) == 16


def test_a_million_names_take_their_bytes_and_no_objects() -> None:
    names = [f"cat/{number:07}.jpg" for number in range(100_000)]
    files = FileList(Path("/data"))
    for start in range(0, len(names), 1000):
        files.add(Found(names[start : start + 1000], array("q", [7] * 1000), array("q", [9] * 1000)))
    assert [files[index] for index in (0, 99_999, -1)] == [Path("/data") / names[index] for index in (0, -1, -1)]
    assert list(files[10:12]) == [Path("/data") / name for name in names[10:12]]
    assert len(files) == 100_000
    assert sum(sys.getsizeof(part) for part in vars(files).values()) < 50 * len(files)


def test_a_folder_is_scanned_once_unless_something_was_added(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_folder(tmp_path, TWO_CLASSES)
    monkeypatch.setattr(image_folder_layout, "SETTLED_NS", 0)
    first = find_splits(tmp_path)
    assert known_splits(tmp_path) is first
    shutil.copy(tmp_path / "train/cat/000.png", tmp_path / "train/cat/more.png")
    assert len(known_splits(tmp_path)[0].paths) == 12
    monkeypatch.setattr(image_folder_layout, "SETTLED_NS", 10**12)  # what has just been written may change unseen
    again = find_splits(tmp_path)
    assert known_splits(tmp_path) is not again


def test_nested_folders_are_in_the_order_of_their_parts(tmp_path: Path) -> None:
    for name in ("train/a/x-y.png", "train/a/x/1.png", "train/a/x.png", "train/b/1.png", "val/a/1.png", "val/b/1.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        picture(0, 12, 12).save(tmp_path / name)
    train, _ = find_splits(tmp_path)
    parts = [train.paths[index].relative_to(tmp_path / "train").parts for index in range(4)]
    assert parts == sorted(parts)


# one image


def one_pixel(image: Image.Image) -> list[int]:
    return to_pixels(image, (1, 1), (1, 1))[:, 0, 0].tolist()


def test_every_kind_of_image_becomes_the_rgb_a_person_sees() -> None:
    palette = Image.new("P", (1, 1), 1)
    palette.putpalette([0, 0, 0, 10, 20, 30])
    clear = palette.copy()
    clear.info["transparency"] = bytes([255, 0])
    assert one_pixel(Image.new("L", (1, 1), 77)) == [77, 77, 77]
    assert one_pixel(Image.new("1", (1, 1), 1)) == [255, 255, 255]
    assert one_pixel(Image.fromarray(np.array([[257 * 200]], np.uint16))) == [200, 200, 200]
    assert one_pixel(Image.new("RGBA", (1, 1), (10, 20, 30, 255))) == [10, 20, 30]
    assert one_pixel(Image.new("RGBA", (1, 1), (10, 20, 30, 0))) == [255, 255, 255]
    assert one_pixel(Image.new("LA", (1, 1), (40, 255))) == [40, 40, 40]
    assert one_pixel(palette) == [10, 20, 30]
    assert one_pixel(clear) == [255, 255, 255]
    assert one_pixel(Image.new("CMYK", (1, 1), (0, 255, 255, 0))) == [255, 0, 0]


def test_scaling_is_antialiased_bilinear_as_torch_computes_it_and_keeps_proportions() -> None:
    image = picture(0, 90, 60)  # covers 28x28 as 42x28
    exact = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float()
    scaled = interpolate(exact, (28, 42), mode="bilinear", antialias=True, align_corners=False)[0]
    wanted = scaled[:, 2:26, 9:33].numpy()
    assert np.abs(to_pixels(image, (28, 28), (24, 24)) - wanted).max() <= 1


def test_photograph_is_turned_upright(tmp_path: Path) -> None:
    upright = picture(0, 6, 4)
    exif = Image.Exif()
    exif[0x0112] = 6  # stored a quarter turn to the left
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.png", exif=exif)
    with Image.open(tmp_path / "turned.png") as turned:
        np.testing.assert_array_equal(to_pixels(turned, (4, 6), (4, 6)), np.asarray(upright).transpose(2, 0, 1))


def full_scaling(image: Image.Image, resize: tuple[int, int], crop: tuple[int, int]) -> np.ndarray:
    """What `to_pixels` promises, by the plain way: scaled as a whole, then cut."""
    scale = max(resize[0] / image.height, resize[1] / image.width)
    height, width = max(resize[0], round(image.height * scale)), max(resize[1], round(image.width * scale))
    whole = np.asarray(image.convert("RGB").resize((width, height), Image.Resampling.BILINEAR))
    top, left = (height - crop[0]) // 2, (width - crop[1]) // 2
    return whole[top : top + crop[0], left : left + crop[1]].transpose(2, 0, 1)


@pytest.mark.parametrize(("width", "height"), [(40, 30), (300, 60), (7, 100), (500, 375), (224, 224), (40, 640)])
def test_ordinary_images_are_scaled_as_a_whole_bit_for_bit(width: int, height: int) -> None:
    image = picture(3, width, height)
    np.testing.assert_array_equal(to_pixels(image, (64, 64), (56, 56)), full_scaling(image, (64, 64), (56, 56)))


@pytest.mark.parametrize(("width", "height"), [(3, 200), (200, 3), (1, 90), (2, 4000)])
def test_a_strip_is_cut_before_it_is_enlarged_to_the_same_pixels_but_for_rounding(width: int, height: int) -> None:
    image = picture(4, width, height)
    found = to_pixels(image, (64, 64), (56, 56)).astype(int)
    assert np.abs(found - full_scaling(image, (64, 64), (56, 56))).max() <= 1


@pytest.mark.parametrize("size", [(1, 30_000), (30_000, 1), (2, 60_000), (65_000, 3)])
def test_a_strip_takes_no_more_memory_than_its_crop(size: tuple[int, int]) -> None:
    """Scaled as a whole the first would have 1.5 thousand million pixels."""
    image = Image.new("RGB", size, (200, 100, 50))
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (psutil.Process().memory_info().vms + 10**9, hard))
    try:
        pixels = to_pixels(image, (256, 256), (224, 224))
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    assert pixels.shape == (3, 224, 224)
    assert (pixels == np.array([200, 100, 50])[:, None, None]).all()


@pytest.mark.parametrize("suffix", ["png", "jpg", "tiff", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_size_is_that_of_the_upright_image_in_every_format(tmp_path: Path, orientation: int, suffix: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture(0, 40, 60).save(tmp_path / f"a.{suffix}", exif=exif)
    turned = orientation >= 5
    assert read_size(tmp_path / f"a.{suffix}") == ((40, 60) if turned else (60, 40))
    with Image.open(tmp_path / f"a.{suffix}") as image:
        wanted = np.asarray(ImageOps.exif_transpose(image).convert("RGB")).transpose(2, 0, 1)
    size = wanted.shape[1:]
    np.testing.assert_array_equal(read_pixels(tmp_path / f"a.{suffix}", size, size), wanted)


def test_small_images_turned_by_exif_keep_their_upright_size(tmp_path: Path) -> None:
    source = write_folder(tmp_path, TWO_CLASSES, 40, 60)
    exif = Image.Exif()
    exif[0x0112] = 6
    for path in tmp_path.glob("*/*/*.png"):
        Image.open(path).transpose(Image.Transpose.ROTATE_90).save(path, exif=exif)
    assert load_data(source, seed=0).preprocessing.size == (60, 40)


def test_a_damaged_exif_block_turns_nothing(tmp_path: Path) -> None:
    picture(0, 6, 4).save(tmp_path / "a.png", exif=b"Exif\x00\x00MM\x00*\xff\xff\xff\xff")
    assert read_size(tmp_path / "a.png") == (4, 6)


RAMP = np.arange(256).reshape(16, 16)
DEEP = {
    "16 bits of grey, PNG": ("png", (RAMP * 257).astype(np.uint16)),
    "16 bits of grey, TIFF": ("tiff", (RAMP * 257).astype(np.uint16)),
    "16 bits of grey, TIFF, other byte order": ("tiff", (RAMP * 257).astype(">u2")),
}


@pytest.mark.parametrize("kind", DEEP)
def test_sixteen_bits_are_scaled_to_eight(tmp_path: Path, kind: str) -> None:
    suffix, values = DEEP[kind]
    Image.fromarray(values).save(tmp_path / f"a.{suffix}")
    pixels = read_pixels(tmp_path / f"a.{suffix}", (16, 16), (16, 16))
    assert all(np.array_equal(channel, RAMP) for channel in pixels)


def png_of_16_bits(values: np.ndarray) -> bytes:
    """uint16 [H, W, C] as a PNG with C = 2 (grey and alpha), 3 (RGB) or 4 (RGBA) channels; Pillow writes none."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    height, width, channels = values.shape
    head = struct.pack(">IIBBBBB", width, height, 16, {2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("channels", [2, 3, 4])
def test_sixteen_bits_of_colour_are_scaled_to_eight(tmp_path: Path, channels: int) -> None:
    values = np.repeat(RAMP[:, :, None] * 257, channels, 2)
    if channels in (2, 4):
        values[:, :, -1] = 65535
    (tmp_path / "a.png").write_bytes(png_of_16_bits(values))
    pixels = read_pixels(tmp_path / "a.png", (16, 16), (16, 16))
    assert all(np.array_equal(channel, RAMP) for channel in pixels)


def test_a_pgm_of_twelve_bits_is_scaled_by_the_white_that_it_names(tmp_path: Path) -> None:
    values = (RAMP * 4095 / 255).round().astype(">u2")
    (tmp_path / "a.pgm").write_bytes(b"P5 16 16 4095\n" + values.tobytes())
    pixels = read_pixels(tmp_path / "a.pgm", (16, 16), (16, 16)).astype(int)
    assert np.abs(pixels - RAMP).max() <= 1


NO_RANGE = "whose range nothing defines: save it with 8 or 16 bits a channel, or remove it from the folder"


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (np.linspace(0, 1, 256, dtype=np.float32).reshape(16, 16), f"has floating-point numbers {NO_RANGE}"),
        (np.linspace(0, 255, 256, dtype=np.float32).reshape(16, 16), f"has floating-point numbers {NO_RANGE}"),
        (np.arange(256, dtype=np.int32).reshape(16, 16), f"has 32-bit integers {NO_RANGE}"),
    ],
    ids=["0..1", "0..255", "integers"],
)
def test_numbers_without_a_range_are_refused(tmp_path: Path, values: np.ndarray, words: str) -> None:
    source = write_folder(tmp_path, TWO_CLASSES)
    bad = tmp_path / "train/cat/float.tiff"
    Image.fromarray(values).save(bad)
    assert refused(source, DataError, 2) == f"image '{bad}' {words}"


def test_colours_that_cannot_become_rgb_are_named() -> None:
    with pytest.raises(UnsupportedImageError, match=r"^has the colour mode La: save it as RGB$"):
        to_pixels(Image.new("La", (12, 12)), (12, 12), (12, 12))


def test_a_picture_beyond_the_limit_is_healthy_but_too_large(tmp_path: Path) -> None:
    source = write_folder(tmp_path, TWO_CLASSES)
    bad = tmp_path / "train/cat/huge.png"
    Image.new("1", (20_000, 9_000)).save(bad)
    words = "has more than 178 megapixels, the most that is decoded: scale it down, or remove it from the folder"
    assert refused(source, DataError, 2) == f"image '{bad}' {words}"


def test_preprocessing_survives_json() -> None:
    preprocessing = Preprocessing((224, 200), (256, 232), (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert Preprocessing.from_json(preprocessing.to_json()) == preprocessing
    values = json.loads(preprocessing.to_json())
    assert values["channel_order"] == "RGB"
    assert values["interpolation"] == "bilinear, antialiased"
    assert values["scale"] * 255 == 1


# what is refused


def refused(source: str, kind: type[DataError], exit_code: int) -> str:
    with pytest.raises(DataError) as caught:
        load_data(source, seed=0)
    assert type(caught.value) is kind
    assert caught.value.exit_code == exit_code
    return str(caught.value)


def test_unknown_source_gets_the_nearest(tmp_path: Path) -> None:
    assert refused("digit", DataError, 2) == "unknown data source 'digit': did you mean digits?"
    *most, last = source_names()
    assert last == "your_pkg.mod:factory"
    assert refused("zzz", DataError, 2) == f"unknown data source 'zzz': give {', '.join(most)} or {last}"
    assert refused(str(tmp_path), DataError, 2) == (
        f"unknown data source '{tmp_path}': did you mean imagefolder:{tmp_path}?"
    )
    assert refused("imagefoldr:images", DataError, 2) == (
        "unknown data source 'imagefoldr:images': did you mean imagefolder?"
    )


@pytest.mark.parametrize(("source", "right"), [("imagefolder:", "imagefolder:PATH"), ("digits:8", "digits")])
def test_source_with_the_wrong_argument(source: str, right: str) -> None:
    assert refused(source, DataError, 2) == f"data source '{source}' is not valid: write {right}"


LAYOUT = "images in train/<class>/ and val/<class>/"


def test_folder_that_is_missing_or_lacks_a_part(tmp_path: Path) -> None:
    root = tmp_path / "images"
    source, folder = f"imagefolder:{root}", f"data folder '{root}'"
    assert refused(source, MissingDataError, 5) == f"{folder} does not exist: give a folder with {LAYOUT}"
    root.mkdir()
    assert refused(source, MissingDataError, 5) == f"{folder} is empty: put {LAYOUT}"
    (root / "validation").mkdir()
    assert refused(source, MissingDataError, 5) == f"{folder} has no folder train: put {LAYOUT}"
    (root / "train").mkdir()
    assert refused(source, MissingDataError, 5) == f"{folder} has neither val nor test: put {LAYOUT}"
    (root / "val").mkdir()
    assert refused(source, MissingDataError, 5) == (
        f"'{root}/train' has no class folders: put images in train/<class>/"
    )
    (root / "train/cat").mkdir()
    assert refused(source, MissingDataError, 5) == (
        f"class folder '{root}/train/cat' has no images "
        "(.bmp, .gif, .jpeg, .jpg, .pgm, .png, .ppm, .tif, .tiff, .webp): add some or remove the folder"
    )


def test_classes_that_differ_are_named(tmp_path: Path) -> None:
    counts = {"train/cat": 1, "train/emu": 1, "train/yak": 1, "val/cat": 1, "val/dog": 1}
    assert refused(write_folder(tmp_path, counts), DataError, 2) == (
        f"the classes differ: only '{tmp_path}/train' has emu, yak and only '{tmp_path}/val' has dog; "
        "give both the same class folders"
    )


def test_single_class(tmp_path: Path) -> None:
    assert refused(write_folder(tmp_path, {"train/cat": 3, "val/cat": 1}), DataError, 2) == (
        f"'{tmp_path}/train' has the single class cat: a classifier needs two or more"
    )


UNKNOWN = "is damaged or of a kind that Pillow does not read: repair it, save it as PNG with 8 bits a channel"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", UNKNOWN),
        (b"GIF89a", UNKNOWN),
        (b"\x89PNG\r\n\x1a\n" + bytes(40), UNKNOWN),
        ("truncated", "cannot be read: repair it"),
    ],
)
def test_unreadable_image_is_named(tmp_path: Path, content: bytes | str, words: str) -> None:
    source = write_folder(tmp_path, TWO_CLASSES, 40, 40)
    bad = tmp_path / "val/dog/001.png"
    bad.write_bytes(content if isinstance(content, bytes) else bad.read_bytes()[:2000])
    assert refused(source, DataError, 2) == f"image '{bad}' {words}, or remove it from the folder"


@pytest.mark.usefixtures("from_disk")
def test_unreadable_image_read_by_a_worker_is_named_in_one_sentence(tmp_path: Path) -> None:
    data = load_data(write_folder(tmp_path, TWO_CLASSES, 40, 40), seed=0)
    bad = tmp_path / "val/dog/001.png"
    bad.write_bytes(b"")
    with pytest.raises(DataError) as caught:
        everything(data.val.batches(2, device="cpu"))
    assert str(caught.value) == f"image '{bad}' {UNKNOWN}, or remove it from the folder"
