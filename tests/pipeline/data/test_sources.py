"""Data from the official CIFAR archives and from users' functions, against files written byte by byte."""

import gzip
import resource
import sys
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from PIL import Image

from atopipe.pipeline.data.dataset import Data
from atopipe.pipeline.data.load import load_data
from atopipe.pipeline.data.preprocessing import preprocess
from atopipe.pipeline.data.source import Request
from atopipe.pipeline.data.sources import cifar
from atopipe.pipeline.data.sources.cifar import CIFAR10, CIFAR100, Edition
from atopipe.pipeline.system import machine
from atopipe.pipeline.system.errors import AtopipeError, DataError, MissingDataError, MissingError

TINY10 = replace(CIFAR10, train={"data_batch_1.bin": 20, "data_batch_2.bin": 20}, val={"test_batch.bin": 10})
TINY100 = replace(CIFAR100, train={"train.bin": 200}, val={"test.bin": 100})
EDITIONS = pytest.mark.parametrize("edition", [TINY10, TINY100], ids=["cifar10", "cifar100"])
HOME = "https://www.cs.toronto.edu/~kriz/cifar.html"


def pixels_of(name: str, count: int) -> np.ndarray:
    return np.random.default_rng(len(name)).integers(0, 256, (count, 3, 32, 32), dtype=np.uint8)


def write_files(edition: Edition, folder: Path) -> Path:
    """The edition's files; image i of a file has the label i modulo the number of classes."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, count in edition.files.items():
        records = [
            bytes([i % 7] * (edition.label_bytes - 1) + [i % edition.classes]) + image.tobytes()
            for i, image in enumerate(pixels_of(name, count))
        ]
        (folder / name).write_bytes(b"".join(records))
    names = "".join(f"class_{number}\n" for number in range(edition.classes))
    (folder / edition.names).write_text(f"{names}\n")
    return folder


def write_archive(edition: Edition, root: Path) -> Path:
    files = write_files(edition, root / "files")
    with tarfile.open(root / edition.archive, "w:gz") as tar:
        tar.add(files, arcname=edition.folder)
    for file in files.iterdir():
        file.unlink()
    files.rmdir()
    return root / edition.archive


def load(edition: Edition, place: Path, input_size: int | None = None) -> Data:
    return cifar.load(edition, str(place), Request(0, input_size, 0.2))


def pixels_in(data: Data) -> list[torch.Tensor]:
    """Normalisation undone: uint8 [N, 3, H, W] of the training and of the validation images."""
    mean, std = (torch.tensor(v)[:, None, None] for v in (data.preprocessing.mean, data.preprocessing.std))
    images = [next(iter(split.batches(len(split), device="cpu")))[0] for split in (data.train, data.val)]
    return [((x * std + mean) * 255).round().byte() for x in images]


def refused(edition: Edition, place: Path, kind: type[DataError] = DataError) -> str:
    with pytest.raises(DataError) as caught:
        load(edition, place)
    assert type(caught.value) is kind
    assert "\n" not in str(caught.value)
    return str(caught.value)


# cifar10, cifar100


def test_official_files_have_their_official_sizes() -> None:
    sizes = [count * edition.record for edition in (CIFAR10, CIFAR100) for count in edition.files.values()]
    assert sizes == [30_730_000] * 6 + [153_700_000, 30_740_000]


@EDITIONS
def test_archive_gives_every_image_with_its_fine_label_in_order(edition: Edition, tmp_path: Path) -> None:
    write_archive(edition, tmp_path)
    data = load(edition, tmp_path)
    for split, got, files in zip((data.train, data.val), pixels_in(data), (edition.train, edition.val), strict=True):
        wanted = np.concatenate([pixels_of(name, count) for name, count in files.items()])
        np.testing.assert_array_equal(got, wanted)
        assert split.labels.tolist() == [i % edition.classes for count in files.values() for i in range(count)]
    assert data.labels == tuple(f"class_{number}" for number in range(edition.classes))
    counts = [sum(files.values()) for files in (edition.train, edition.val)]
    assert data.description == (
        f"{edition.name} '{tmp_path}': {sum(counts)} photographs, {edition.classes} classes, 32x32 pixels "
        f"({counts[0]} for training, {counts[1]} for validation)"
    )


@EDITIONS
def test_files_are_found_in_an_archive_given_by_name_and_unpacked(edition: Edition, tmp_path: Path) -> None:
    archive = write_archive(edition, tmp_path)
    unpacked = write_files(edition, tmp_path / "unpacked" / edition.folder)
    wanted = pixels_in(load(edition, archive))
    for place in (unpacked, unpacked.parent):
        assert all(torch.equal(a, b) for a, b in zip(pixels_in(load(edition, place)), wanted, strict=True))


def test_reading_an_archive_writes_nothing(tmp_path: Path) -> None:
    archive = write_archive(TINY10, tmp_path)
    load(TINY10, tmp_path)
    assert list(tmp_path.iterdir()) == [archive]


def test_input_size_scales_the_images_as_one_image_is_preprocessed(tmp_path: Path) -> None:
    write_archive(TINY10, tmp_path)
    data = load(TINY10, tmp_path, 48)
    first = Image.fromarray(pixels_of("test_batch.bin", 10)[0].transpose(1, 2, 0))
    image, _ = next(iter(data.val.batches(1, device="cpu")))
    np.testing.assert_allclose(image[0], preprocess(first, data.preprocessing), atol=1e-6)
    assert data.preprocessing.size == (48, 48)


def test_files_of_the_official_size_are_loaded_by_name(tmp_path: Path) -> None:
    for name, count in CIFAR10.files.items():
        records = np.memmap(tmp_path / name, np.uint8, "w+", shape=(count, CIFAR10.record))
        records[:, 0] = np.arange(count) % 10
        records[:, 1] = 255
        records.flush()
    (tmp_path / CIFAR10.names).write_text("\n".join("abcdefghij"))
    data = load_data(f"cifar10:{tmp_path}", seed=0)
    assert (len(data.train), len(data.val), data.name) == (50_000, 10_000, "cifar10")


def test_nothing_to_read(tmp_path: Path) -> None:
    fetch = f"fetch cifar-10-binary.tar.gz from {HOME}"
    absent = tmp_path / "absent"
    assert refused(TINY10, absent, MissingDataError) == (
        f"data folder '{absent}' does not exist: {fetch} and give its folder"
    )
    assert refused(TINY10, tmp_path, MissingDataError) == (
        f"'{tmp_path}' has neither cifar-10-binary.tar.gz nor what it contains: {fetch}"
    )
    assert MissingDataError.exit_code == 5


@pytest.mark.parametrize("name", ["cifar-10-python.tar.gz", "cifar-10-batches-py/data_batch_1", "data_batch_1"])
def test_pickled_version_is_never_opened(tmp_path: Path, name: str) -> None:
    pickled = tmp_path / name
    pickled.parent.mkdir(exist_ok=True)
    pickled.write_bytes(b"cos\nsystem\n(S'exit 1'\ntR.")
    assert refused(TINY10, tmp_path, MissingDataError) == (
        f"'{tmp_path}' holds the pickled version of CIFAR-10, which is never loaded: "
        f"fetch cifar-10-binary.tar.gz from {HOME} instead"
    )


def test_another_data_set_is_recognised(tmp_path: Path) -> None:
    write_archive(TINY10, tmp_path)
    assert refused(TINY100, tmp_path) == f"'{tmp_path}' holds CIFAR-10, not CIFAR-100: did you mean cifar10:{tmp_path}?"
    folders = tmp_path / "folders"
    (folders / "train").mkdir(parents=True)
    assert refused(TINY10, folders) == (
        f"'{folders}' holds folders, not the archive of CIFAR-10: did you mean imagefolder:{folders}?"
    )


def test_archive_with_other_contents(tmp_path: Path) -> None:
    write_archive(TINY100, tmp_path).rename(tmp_path / CIFAR10.archive)
    assert refused(TINY10, tmp_path) == (
        f"'{tmp_path}/cifar-10-binary.tar.gz' is not the binary version of CIFAR-10, it lacks data_batch_1.bin: "
        f"fetch cifar-10-binary.tar.gz from {HOME}"
    )


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
def test_archive_cut_off_anywhere(tmp_path: Path, share: float) -> None:
    archive = write_archive(TINY10, tmp_path)
    content = archive.read_bytes()
    archive.write_bytes(content[: int(share * len(content))])
    assert refused(TINY10, tmp_path) == (
        f"archive '{archive}' is damaged or incomplete: fetch cifar-10-binary.tar.gz from {HOME} again"
    )


def test_archive_with_a_changed_byte_fails_its_checksum(tmp_path: Path) -> None:
    archive = write_archive(TINY10, tmp_path)
    with gzip.open(archive) as unpacked:
        stored = bytearray(gzip.compress(unpacked.read(), compresslevel=0))
    stored[len(stored) // 2] ^= 1
    archive.write_bytes(stored)
    assert "is damaged or incomplete" in refused(TINY10, tmp_path)


def test_archive_that_is_none(tmp_path: Path) -> None:
    (tmp_path / CIFAR10.archive).write_text("<html>not found</html>")
    assert "is damaged or incomplete" in refused(TINY10, tmp_path)


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.XGLTYPE, tarfile.REGTYPE])
def test_an_entry_that_claims_to_be_huge_takes_no_memory(tmp_path: Path, kind: bytes) -> None:
    claim = tarfile.TarInfo("x")
    claim.type, claim.size = kind, 6 * 10**9
    with gzip.open(tmp_path / CIFAR10.archive, "wb") as file:
        file.write(claim.tobuf() + bytes(2**20))
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (psutil.Process().memory_info().vms + 3 * 10**8, hard))
    try:
        assert "is damaged or incomplete" in refused(TINY10, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def test_archive_whose_files_are_links_is_refused(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(bytes(TINY10.record * 20))
    with tarfile.open(tmp_path / CIFAR10.archive, "w:gz") as tar:
        for name in (*TINY10.files, TINY10.names):
            link = tarfile.TarInfo(f"../{name}")
            link.type, link.linkname = tarfile.SYMTYPE, str(secret)
            tar.addfile(link)
    assert "it lacks data_batch_1.bin" in refused(TINY10, tmp_path)


@pytest.mark.parametrize("packed", [False, True])
def test_file_of_the_wrong_size(tmp_path: Path, packed: bool) -> None:
    one_less = replace(TINY10, val={"test_batch.bin": 9})
    place = write_archive(one_less, tmp_path) if packed else write_files(one_less, tmp_path)
    assert refused(TINY10, tmp_path) == (
        f"test_batch.bin in '{place}' has 27,657 bytes instead of 30,730: "
        f"fetch cifar-10-binary.tar.gz from {HOME} again"
    )


def test_huge_list_of_names_is_not_read_into_memory(tmp_path: Path) -> None:
    write_files(TINY10, tmp_path)
    with (tmp_path / TINY10.names).open("wb") as file:
        file.truncate(10**12)  # a hole: takes no space
    assert refused(TINY10, tmp_path).startswith(f"batches.meta.txt in '{tmp_path}' has 1,000,000,000,000 bytes ")


def test_labels_and_names_that_do_not_fit(tmp_path: Path) -> None:
    write_files(TINY10, tmp_path)
    fetch = f"fetch cifar-10-binary.tar.gz from {HOME}"
    batch = tmp_path / "test_batch.bin"
    batch.write_bytes(b"\xc8" + batch.read_bytes()[1:])
    assert refused(TINY10, tmp_path) == f"CIFAR-10 has a label 200, beyond its 10 classes: {fetch}"
    (tmp_path / TINY10.names).write_text("cat\ndog\n")
    assert refused(TINY10, tmp_path) == f"'{tmp_path}' names 2 classes of 10 in batches.meta.txt: {fetch}"


# your_pkg.mod:factory

FACTORIES = r"""
import numpy as np
import torch
from atopipe.pipeline.data.load import load_data

def images(count, channels=3, side=8):
    return np.random.default_rng(count).integers(0, 256, (count, channels, side, side), dtype=np.uint8)

def arrays(seed):
    labels = [(i + seed) % 3 for i in range(12)]
    return images(12), labels, images(6), np.arange(6) % 3, ("cat", "dog", "emu")

def tensors():
    part = torch.from_numpy(images(4, 1)), torch.tensor([0, 1, 0, 1], dtype=torch.int32)
    return [*part, *part, ["a", "b"]]

def own(**settings):
    return load_data("digits", seed=settings["seed"], val_fraction=settings["val_fraction"])

def floats():
    return images(4) / 255, [0, 1, 0, 1], images(4), [0, 1, 0, 1], ("a", "b")

def too_few_labels():
    return images(4), [0, 1, 0], images(4), [0, 1, 0, 1], ("a", "b")

def too_many_classes():
    return images(4), [0, 1, 0, 1], images(4), [1, 2, 1, 2], ("a", "b")

def one_class():
    return images(4), [0] * 4, images(4), [0] * 4, ("a",)

def number_of_classes():
    return images(4), [0, 1, 0, 1], images(4), [0, 1, 0, 1], 2

def ragged():
    return [[1, 2], [3]], [0, 1], images(2), [0, 1], ("a", "b")

def read_only():
    pixels = images(4)[:, ::-1]
    pixels.flags.writeable = False
    return pixels, [0, 1, 0, 1], pixels, [0, 1, 0, 1], ("a", "b")

PART = (np.arange(192, dtype=np.uint8).reshape(4, 3, 4, 4), [0, 1, 0, 1])

def named(names):
    return lambda: (*PART, *PART, names)

unordered, letters, numbers_of_names = named({"a", "b"}), named("ab"), named({"a": 0, "b": 1})
of_bytes, of_none, twice = named([b"a", b"b"]), named([None, "b"]), named(["a", "a"])
twice_composed, empty, line_break = named(["caf\u00e9", "cafe\u0301"]), named([" ", "b"]), named(["a\nb", "c"])
separator, next_line, escape = named(["a\u2028b", "c"]), named(["a\x85b", "c"]), named(["\x1b[31m", "c"])
turned, surrogate = named(["a\u202eb", "c"]), named(["a\udce9", "c"])
by_number, by_text, whole = named({1: "b", 0: "a"}), named({"1": "b", "0": "a"}), named(range(2))
joined = named(["\u0646\u200c\u0647", "b"])

def leaves():
    raise SystemExit(0)

def black():
    return images(4) * 0, [0, 1, 0, 1], images(4), [0, 1, 0, 1], ("a", "b")

def white_validation():
    return images(4), [0, 1, 0, 1], images(4) * 0 + 255, [0, 1, 0, 1], ("a", "b")

def all_of_one_class():
    return images(4), [1] * 4, images(4), [0, 1, 0, 1], ("a", "b")

def two_sizes():
    return images(4), [0, 1, 0, 1], images(4, side=6), [0, 1, 0, 1], ("a", "b")

def pair():
    return images(4), [0, 1, 0, 1]

def broken(seed):
    raise OSError("the disk is away")

def refuses():
    return load_data("imagefolder:/no/such/folder", seed=0)
"""


@pytest.fixture
def user_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The name of a module in the working directory, near that of a source; import state is put back afterwards."""
    (tmp_path / "cifar_10.py").write_text(FACTORIES)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield "cifar_10"
    sys.modules.pop("cifar_10", None)


def test_factory_gives_arrays_and_is_given_the_seed(user_module: str) -> None:
    data = load_data(f"{user_module}:arrays", seed=2)
    assert data.train.labels.tolist() == [2, 0, 1] * 4
    assert data.labels == ("cat", "dog", "emu")
    assert data.description == ("cifar_10:arrays: 18 images, 3 classes, 8x8 pixels (12 for training, 6 for validation)")
    np.testing.assert_array_equal(
        pixels_in(data)[0], np.random.default_rng(12).integers(0, 256, (12, 3, 8, 8), dtype=np.uint8)
    )


def test_grey_tensors_become_rgb(user_module: str) -> None:
    data = load_data(f"{user_module}:tensors", seed=0)
    grey = np.random.default_rng(4).integers(0, 256, (4, 1, 8, 8), dtype=np.uint8)
    assert all(np.array_equal(pixels, np.repeat(grey, 3, 1)) for pixels in pixels_in(data))
    assert data.train.labels.dtype == torch.int64


def test_views_that_may_not_be_written_are_taken_as_they_are(user_module: str) -> None:
    data = load_data(f"{user_module}:read_only", seed=0)
    wanted = np.random.default_rng(4).integers(0, 256, (4, 3, 8, 8), dtype=np.uint8)[:, ::-1]
    assert all(np.array_equal(pixels, wanted) for pixels in pixels_in(data))


def test_lists_that_are_no_arrays_are_refused(user_module: str) -> None:
    message = rf"^data factory '{user_module}:ragged': the training images or labels are not arrays: ValueError: "
    with pytest.raises(DataError, match=message):
        load_data(f"{user_module}:ragged", seed=0)


def test_factory_may_return_data_of_its_own(user_module: str) -> None:
    data = load_data(f"{user_module}:own", seed=0, val_fraction=0.5)
    assert (data.name, len(data.val)) == ("digits", 899)


MESSAGES: Mapping[str, str] = {
    "floats": ": the training images are float64 [4, 3, 8, 8]: give uint8 [N, C, H, W] with one channel or three",
    "too_few_labels": ": the training labels are int64 [3] for 4 images: give each image an integer",
    "too_many_classes": ": the validation labels go from 1 to 2: number the 2 classes from 0",
    "one_class": " has the class names ['a']: a classifier needs two or more",
    "number_of_classes": " has class names in a int: give a list, in the order of their numbers",
    "unordered": " has class names in a set: give a list, in the order of their numbers",
    "letters": " has class names in a str: give a list, in the order of their numbers",
    "numbers_of_names": " has class names in a dict: give a list, in the order of their numbers",
    "of_bytes": " has the class name b'a', a bytes: give strings",
    "of_none": " has the class name None, a NoneType: give strings",
    "twice": " has two classes named 'a': give each a different name",
    "twice_composed": " has two classes named 'caf\u00e9': give each a different name",
    "empty": " has the class name ' ' with nothing to read: rename the class",
    "line_break": " has the class name 'a\\nb' with the invisible character U+000A: rename the class",
    "separator": " has the class name 'a\\u2028b' with the invisible character U+2028: rename the class",
    "next_line": " has the class name 'a\\x85b' with the invisible character U+0085: rename the class",
    "escape": " has the class name '\\x1b[31m' with the invisible character U+001B: rename the class",
    "turned": " has the class name 'a\\u202eb' with the invisible character U+202E: rename the class",
    "surrogate": " has the class name 'a\\udce9' with the invisible character U+DCE9: rename the class",
    "leaves": " failed with no arguments: it ended the program with sys.exit(0)",
    "two_sizes": " has training images of 8x8 pixels and validation images of 6x6: scale them alike",
    "pair": " returned a tuple of 2: return (train_images, train_labels, val_images, val_labels, class_names)",
    "broken": " failed with seed=0: OSError: the disk is away",
    "array": ": module 'cifar_10' has no function 'array': did you mean arrays?",
}


@pytest.mark.parametrize(("factory", "message"), MESSAGES.items(), ids=MESSAGES)
def test_factory_that_cannot_be_used_is_named_with_the_remedy(user_module: str, factory: str, message: str) -> None:
    with pytest.raises(DataError) as caught:
        load_data(f"{user_module}:{factory}", seed=0)
    assert str(caught.value) == f"data factory '{user_module}:{factory}'{message}"
    assert caught.value.exit_code == 2


LOADED: Mapping[str, str] = {
    "all_of_one_class": "training images of the class b only: a classifier needs two or more",
    "black": "training images of one colour only, RGB (0, 0, 0): check how they were made",
    "white_validation": "validation images of one colour only, RGB (255, 255, 255): check how they were made",
}


@pytest.mark.parametrize(("factory", "message"), LOADED.items(), ids=LOADED)
def test_data_that_nothing_can_be_learned_from_is_refused(user_module: str, factory: str, message: str) -> None:
    with pytest.raises(DataError) as caught:
        load_data(f"{user_module}:{factory}", seed=0)
    assert str(caught.value) == f"data '{user_module}:{factory}' has {message}"


@pytest.mark.parametrize(
    ("factory", "names"),
    [("by_number", "a b"), ("by_text", "a b"), ("whole", "0 1"), ("joined", "\u0646\u200c\u0647 b")],
)
def test_class_names_are_in_the_order_of_their_numbers(user_module: str, factory: str, names: str) -> None:
    assert load_data(f"{user_module}:{factory}", seed=0).labels == tuple(names.split())


def test_what_a_factory_refuses_in_a_sentence_is_passed_on(user_module: str) -> None:
    with pytest.raises(MissingDataError, match=r"^data folder '/no/such/folder' does not exist: "):
        load_data(f"{user_module}:refuses", seed=0)


def test_factory_of_a_module_that_is_not_there() -> None:
    with pytest.raises(DataError, match=r"^data factory 'no_pkg\.data:load' does not import: there is no module 'no_"):
        load_data("no_pkg.data:load", seed=0)


# too little memory


def test_images_that_do_not_fit_are_refused_before_they_are_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "available_memory", lambda: 2 * 10**9)
    with pytest.raises(AtopipeError) as caught:
        load_data("digits", seed=0, input_size=2048)
    assert type(caught.value) is MissingError
    assert str(caught.value) == (
        "1,437 images of 2048x2048 pixels need 18.1 GB of memory and 2.0 GB are free: "
        "lower data.input_size or take fewer images"
    )


def test_archive_that_does_not_fit_is_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "available_memory", lambda: 10**8)
    with pytest.raises(MissingError) as caught:
        load_data(f"cifar10:{tmp_path}", seed=0)
    assert str(caught.value) == "the images of CIFAR-10 need 0.4 GB of memory and 0.1 GB are free: free some"
