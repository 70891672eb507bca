"""Data sets: the pixels that arrive, their order, and the exact words where there are none."""

import json
import weakref
from functools import partial
from itertools import islice, pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import interpolate

from atopipe.pipeline.data.augment import Augmentation, pad_crop_flip, unchanged
from atopipe.pipeline.data.dataset import Batches, Data, Share, Split, stratified
from atopipe.pipeline.data.load import load_data, source_names
from atopipe.pipeline.data.preprocessing import Preprocessing, preprocess, to_pixels
from atopipe.pipeline.data.sources import image_folder
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


def test_files_that_are_no_images_are_passed_over(tmp_path: Path) -> None:
    source = write_folder(tmp_path, TWO_CLASSES)
    (tmp_path / "train/cat/notes.txt").write_text("not an image")
    (tmp_path / "train/cat/._000.png").write_bytes(b"left by another system")
    (tmp_path / "train/.cache").mkdir()
    assert len(load_data(source, seed=0).train) == 11


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
    assert refused(source, DataError, 2) == f"data source '{source}' is incomplete or has too much: write {right}"


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


@pytest.mark.parametrize("content", [b"", b"GIF89a", b"\x89PNG\r\n\x1a\n" + bytes(40), "truncated"])
def test_unreadable_image_is_named(tmp_path: Path, content: bytes | str) -> None:
    source = write_folder(tmp_path, TWO_CLASSES, 40, 40)
    bad = tmp_path / "val/dog/001.png"
    bad.write_bytes(content if isinstance(content, bytes) else bad.read_bytes()[:2000])
    assert refused(source, DataError, 2) == f"image '{bad}' cannot be read: repair it or take it out of the folder"


@pytest.mark.usefixtures("from_disk")
def test_unreadable_image_read_by_a_worker_is_named_in_one_sentence(tmp_path: Path) -> None:
    data = load_data(write_folder(tmp_path, TWO_CLASSES, 40, 40), seed=0)
    bad = tmp_path / "val/dog/001.png"
    bad.write_bytes(b"")
    with pytest.raises(DataError) as caught:
        everything(data.val.batches(2, device="cpu"))
    assert str(caught.value) == f"image '{bad}' cannot be read: repair it or take it out of the folder"
