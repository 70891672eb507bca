"""Photographs that stay encoded: their windows, their pixels, and where they are read from."""

import io
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from atopipe.pipeline.data.dataset import Split
from atopipe.pipeline.data.photographs.encoded import EncodedFiles, EncodedSlices
from atopipe.pipeline.data.photographs.store import Photographs, cut_out, decoded
from atopipe.pipeline.data.photographs.windows import NUMBERS, RandomWindows, Window
from atopipe.pipeline.data.preprocessing import ORIENTATION, Preprocessing, to_pixels
from atopipe.pipeline.system.errors import DataError

SIZE = (96, 96)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def photo(seed: int = 0, width: int = 160, height: int = 120, mode: str = "RGB") -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).convert(mode)


def as_jpeg(image: Image.Image, orientation: int = 1) -> bytes:
    content, exif = io.BytesIO(), Image.Exif()
    exif[ORIENTATION] = orientation
    image.save(content, "JPEG", quality=92, exif=exif)
    return content.getvalue()


@pytest.fixture
def files(tmp_path: Path) -> EncodedFiles:
    for number in range(12):
        (tmp_path / f"{number:02}.jpg").write_bytes(as_jpeg(photo(number)))
    return EncodedFiles(sorted(tmp_path.iterdir()))


def split_of(files: EncodedFiles) -> Split:
    settings = Preprocessing(SIZE, (108, 108), (0.0,) * 3, (1.0,) * 3)
    store = Photographs(files, (108, 108), SIZE)
    return Split(store, torch.arange(12), settings, RandomWindows(SIZE))


def test_windows_reach_every_part_of_the_whole_picture_and_keep_to_their_limits() -> None:
    """Random crops of a centre would never see the sides of a 4:3 photograph."""
    random, seen, mirrored = RandomWindows((224, 224)), np.zeros((90, 120)), 0
    for numbers in random.draw(4000, seeded()).tolist():
        window = random.window(numbers, 90, 120)
        assert 0 <= window.top <= 90 - window.height
        assert 0 <= window.left <= 120 - window.width
        assert 0.07 < window.height * window.width / (90 * 120) <= 1
        assert 3 / 4 - 0.03 < window.width / window.height < 4 / 3 + 0.03
        seen[window.top : window.top + window.height, window.left : window.left + window.width] += 1
        mirrored += window.mirrored
    assert seen.min() > 0
    assert 1850 < mirrored < 2150
    np.testing.assert_allclose(seen[:, 0] / 4000, seen[:, -1] / 4000, atol=0.03)


@pytest.mark.parametrize(("height", "width", "kept"), [(10, 400, (10, 13)), (400, 10, (13, 10)), (1, 1, (1, 1))])
def test_a_picture_that_no_window_fits_gives_its_centre(height: int, width: int, kept: tuple[int, int]) -> None:
    window = RandomWindows(SIZE, area=(0.9, 1.0)).window([0.5] * NUMBERS, height, width)
    assert (window.height, window.width) == kept
    assert (window.top, window.left) == ((height - kept[0]) // 2, (width - kept[1]) // 2)


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_a_decoded_jpeg_is_what_a_person_sees(mode: str, orientation: int) -> None:
    content = as_jpeg(photo(mode=mode), orientation)
    pixels = decoded(content, "a.jpg")
    with Image.open(io.BytesIO(content)) as image:
        size = (image.height, image.width) if orientation in (1, 3) else (image.width, image.height)
        wanted = to_pixels(image, size, size)
    assert np.abs(pixels.numpy().astype(int) - wanted).mean() < 2


def test_other_formats_are_decoded_as_well_and_what_is_broken_is_named(tmp_path: Path) -> None:
    photo().save(tmp_path / "a.png")
    pixels = decoded((tmp_path / "a.png").read_bytes(), "a.png")
    np.testing.assert_array_equal(pixels.permute(1, 2, 0).numpy(), np.asarray(photo()))
    for content in (as_jpeg(photo())[:300], b"", b"\xff\xd8\xff"):
        with pytest.raises(DataError, match=r"^image 'broken\.jpg' .*, or remove it from the folder$"):
            decoded(content, "broken.jpg")


def test_a_window_is_the_part_it_names_scaled_and_mirrored() -> None:
    pixels = decoded(as_jpeg(photo()), "a.jpg")
    row = torch.empty(3, 20, 30, dtype=torch.uint8)
    cut_out(pixels, Window(10, 40, 20, 30), row)
    assert torch.equal(row, pixels[:, 10:30, 40:70])
    cut_out(pixels, Window(10, 40, 20, 30, mirrored=True), row)
    assert torch.equal(row, pixels[:, 10:30, 40:70].flip(2))
    cut_out(pixels, Window(0, 0, 120, 160), row)
    by_pillow = np.asarray(photo().resize((30, 20), Image.Resampling.BILINEAR))
    assert np.abs(row.permute(1, 2, 0).numpy().astype(int) - by_pillow).mean() < 2


def test_without_windows_the_pixels_are_those_of_the_device(files: EncodedFiles) -> None:
    pixels = next(Photographs(files, (108, 108), SIZE).read([torch.arange(12)], torch.device("cpu")))
    for path, row in zip(files.paths, pixels, strict=True):
        with Image.open(path) as image:
            np.testing.assert_array_equal(row.numpy(), to_pixels(image, (108, 108), SIZE))


def test_an_epoch_that_is_taken_up_again_has_the_windows_it_would_have_had(files: EncodedFiles) -> None:
    batches = split_of(files).batches(4, device="cpu", generator=seeded())
    order = batches.order()
    first = list(batches)
    assert {tuple(images.shape) for images, _ in first} == {(4, 3, *SIZE)}
    for whole, again in zip(first[1:], batches.resume(order, 1), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(whole, again, strict=True))
    second = list(batches)
    assert not torch.equal(torch.cat([i for i, _ in first]), torch.cat([i for i, _ in second]))


def test_some_of_the_pictures_are_cut_like_all_of_them(files: EncodedFiles) -> None:
    some = split_of(files).take(torch.tensor([3, 5, 7, 9]))
    images, labels = next(iter(some.batches(4, device="cpu", generator=seeded())))
    assert images.shape == (4, 3, *SIZE)
    assert sorted(labels.tolist()) == [3, 5, 7, 9]


def test_slices_of_large_files_are_read_by_number(files: EncodedFiles, tmp_path: Path) -> None:
    contents = [files.read(index) for index in range(12)]
    shards = [tmp_path / "a.bin", tmp_path / "b.bin"]
    for shard, part in zip(shards, (contents[:5], contents[5:]), strict=True):
        shard.write_bytes(b"head" + b"".join(part))
    lengths = np.array([*map(len, contents)], np.int64)
    starts = np.concatenate([4 + np.cumsum([0, *part[:-1]]) for part in (lengths[:5], lengths[5:])]).astype(np.int64)
    slices = EncodedSlices(shards, np.repeat([0, 1], [5, 7]).astype(np.int32), starts, lengths)
    assert [slices.read(index) for index in range(12)] == contents
    assert slices.name(5) == f"{shards[1]}:4"


def test_decoding_leaves_no_thread_behind_where_a_reader_stops_early(files: EncodedFiles) -> None:
    before = threading.active_count()
    batches = iter(split_of(files).batches(2, device="cpu", generator=seeded()))
    next(batches)
    batches.close()  # type: ignore[attr-defined]  # a generator
    assert threading.active_count() == before
