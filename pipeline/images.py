"""From an image file to the network's input; whoever deploys the network repeats exactly `preprocess`.

Pixels stay uint8 until they are on the device: a quarter of the memory, and the same values everywhere.
"""

import dataclasses
import json
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from atopipe.pipeline.distributed import this_job
from atopipe.pipeline.errors import AtopipeError, MissingError, UsageError
from atopipe.pipeline.memory import require_memory

Size = tuple[int, int]  # height, width
Pixels = NDArray[np.uint8]  # [C, H, W], or [N, C, H, W]
OnProgress = Callable[[int, int], None]  # images done, images in all

SMALL = 64  # up to here images are used whole; above, a margin leaves room for random crops
CHUNK = 64  # images a thread decodes at a time


class DataError(AtopipeError):
    """The data cannot be used: the message names the path or the source, and the remedy."""

    exit_code = UsageError.exit_code


class MissingDataError(DataError):
    """The data is not there."""

    exit_code = MissingError.exit_code


FIXED_STEPS = {
    "orientation": "exif",
    "transparency": "over white",
    "channel_order": "RGB",
    "layout": "NCHW",
    "fit": "cover",
    "interpolation": "bilinear, antialiased",
    "crop": "center",
    "scale": 1 / 255,
}


@dataclass(frozen=True)
class Preprocessing:
    """How an image becomes network input.

    The image is turned upright as its EXIF data says, laid over white if transparent, made RGB, scaled (keeping its
    proportions, antialiased bilinear as in PIL) until it just covers `resize`, cut to the central `size`, divided by
    255; then `mean` is subtracted and the result divided by `std`, per channel. Sizes are (height, width).
    """

    size: Size
    resize: Size
    mean: tuple[float, ...]
    std: tuple[float, ...]
    channels: int = 3

    def to_json(self) -> str:
        """Every field, and the steps that are the same for all networks, for readers without atopipe."""
        return json.dumps({**dataclasses.asdict(self), **FIXED_STEPS})

    @classmethod
    def from_json(cls, text: str) -> "Preprocessing":
        """The inverse of `to_json`."""
        values = json.loads(text)
        (height, width), (least_height, least_width) = values["size"], values["resize"]
        mean, std = tuple(values["mean"]), tuple(values["std"])
        return cls((height, width), (least_height, least_width), mean, std, values["channels"])


def resize_for(size: Size) -> Size:
    """What an image is scaled to cover before `size` is cut out: 256 for 224, nothing extra for small images.

    The margin is even, so that the centre of a centre is the centre.
    """
    margin = 0 if max(size) <= SMALL else 2 * round(min(size) / 14)
    return size[0] + margin, size[1] + margin


def preprocess(image: Image.Image, preprocessing: Preprocessing) -> NDArray[np.float32]:
    """The network's input [C, H, W] for one image."""
    pixels = to_pixels(image, preprocessing.resize, preprocessing.size).astype(np.float32)
    mean, std = (np.asarray(v, np.float32)[:, None, None] for v in (preprocessing.mean, preprocessing.std))
    normalised: NDArray[np.float32] = (pixels / np.float32(255) - mean) / std
    return normalised


def to_pixels(image: Image.Image, resize: Size, crop: Size) -> Pixels:
    """The central `crop` of the image scaled to cover `resize`: uint8 [3, H, W]."""
    image = _to_rgb(ImageOps.exif_transpose(image))
    scale = max(resize[0] / image.height, resize[1] / image.width)
    height, width = (max(least, round(n * scale)) for least, n in zip(resize, (image.height, image.width), strict=True))
    if (height, width) != (image.height, image.width):
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    top, left = (height - crop[0]) // 2, (width - crop[1]) // 2
    pixels = np.asarray(image)[top : top + crop[0], left : left + crop[1]]
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16 bits of grey: Pillow's own conversion clips instead of scaling
        return Image.fromarray((np.asarray(image) // 257).clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def read_pixels(path: Path, resize: Size, crop: Size) -> Pixels:
    """`to_pixels` of a file; raises DataError where it cannot be read."""
    with _reading(path) as image:
        return to_pixels(image, resize, crop)


def read_size(path: Path) -> Size:
    """Height and width, from the header alone; raises DataError where it cannot be read."""
    with _reading(path) as image:
        return image.height, image.width


@contextmanager
def _reading(path: Path) -> Iterator[Image.Image]:
    try:
        with Image.open(path) as image:
            yield image
    except MemoryError:
        raise
    except Exception as error:  # decoders raise nearly anything on broken bytes
        raise DataError(f"image '{path}' cannot be read: repair it or take it out of the folder") from error


def read_all(paths: Sequence[Path], resize: Size, crop: Size, on_progress: OnProgress | None = None) -> Pixels:
    """Every file decoded, in order, by several threads: uint8 [N, 3, H, W]; DataError for the first broken one."""
    pixels = allocate_pixels(len(paths), crop)

    def fill(start: int) -> int:
        for index in range(start, min(start + CHUNK, len(paths))):
            pixels[index] = read_pixels(paths[index], resize, crop)
        return min(start + CHUNK, len(paths))

    pool = ThreadPoolExecutor(available_cores())
    try:
        for done in pool.map(fill, range(0, len(paths), CHUNK)):
            if on_progress is not None:
                on_progress(done, len(paths))
    finally:
        pool.shutdown(cancel_futures=True)
    return pixels


def resized(pixels: Pixels, size: Size) -> Pixels:
    """Every image of [N, C, H, W], with one channel or three, as `to_pixels` makes it: uint8 [N, 3, *size]."""
    if pixels.shape[1:] == (3, *size):
        return pixels
    scaled = allocate_pixels(len(pixels), size)
    for image, place in zip(pixels, scaled, strict=True):
        place[:] = to_pixels(Image.fromarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0)), size, size)
    return scaled


def allocate_pixels(count: int, size: Size) -> Pixels:
    """uint8 [count, 3, *size], not yet filled; raises MissingError where the memory for it is lacking."""
    what = f"{count:,} images of {size[1]}x{size[0]} pixels"
    require_memory(what, count * 3 * size[0] * size[1], "lower data.input_size or take fewer images")
    return np.empty((count, 3, *size), np.uint8)


def available_cores() -> int:
    """The cores this process may use; the processes of a job have equal shares."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // this_job().local_size)


def channel_statistics(pixels: Pixels) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel of uint8 [N, C, H, W], as fractions of 255, to six digits.

    From exact counts of the 256 values: no order of summation, no rounding.
    """
    share = _histogram(pixels) / (pixels.size / pixels.shape[1])
    values = np.arange(256) / 255
    mean = share @ values
    deviation = np.sqrt((share * (values - mean[:, None]) ** 2).sum(1))
    # A channel that is the same everywhere must not be divided by zero.
    return _rounded(mean), _rounded(np.maximum(deviation, 1 / 255))


def _histogram(pixels: Pixels) -> NDArray[np.int64]:
    counts = np.zeros((pixels.shape[1], 256), np.int64)
    for start in range(0, len(pixels), CHUNK):  # in parts: bincount works on eight bytes per value
        for channel, seen in enumerate(counts):
            seen += np.bincount(pixels[start : start + CHUNK, channel].ravel(), minlength=256)
    return counts


def _rounded(values: NDArray[np.float64]) -> tuple[float, ...]:
    return tuple(round(float(value), 6) for value in values)
