"""From image files to pixels."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image, UnidentifiedImageError

from atopipe.pipeline.data.preprocessing import BILINEAR, CHUNK, Pixels, Size, UnsupportedImageError, to_pixels, upright
from atopipe.pipeline.system.errors import DataError
from atopipe.pipeline.system.machine import available_processors, require_memory

# Pictures up to Pillow's limit are decoded; beyond half of it, it would warn of each on standard error.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


def read_pixels(path: Path, resize: Size, crop: Size, interpolation: str = BILINEAR) -> Pixels:
    """`to_pixels` of a file; raises DataError where it cannot be read."""
    with opened(path, str(path)) as image:
        return to_pixels(image, resize, crop, interpolation)


def read_size(path: Path) -> Size:
    """Height and width of the upright image; raises DataError where it cannot be read."""
    with opened(path, str(path)) as image:
        turned = upright(image)
        return turned.height, turned.width


@contextmanager
def opened(file: Path | IO[bytes], name: str) -> Iterator[Image.Image]:
    """The image in a file; while active, whatever goes wrong becomes a DataError that names it."""
    try:
        with Image.open(file) as image:
            yield image
    except MemoryError:
        raise
    except Exception as error:  # decoders raise nearly anything on broken bytes
        raise DataError(f"image '{name}' {_complaint(error)}, or remove it from the folder") from error


def _complaint(error: Exception) -> str:
    """What is wrong with an image, and what to do about it."""
    if isinstance(error, UnsupportedImageError):
        return str(error)
    if isinstance(error, Image.DecompressionBombError):
        limit = 2 * (Image.MAX_IMAGE_PIXELS or 0) // 10**6
        return f"has more than {limit} megapixels, the most that is decoded: scale it down"
    if isinstance(error, UnidentifiedImageError):
        return "is damaged or of a kind that Pillow does not read: repair it, save it as PNG with 8 bits a channel"
    if isinstance(error, PermissionError):
        return "may not be read: change its permissions"
    return "cannot be read: repair it"


def read_all(
    paths: Sequence[Path],
    resize: Size,
    crop: Size,
    on_progress: Callable[[int, int], None] | None = None,
    interpolation: str = BILINEAR,
) -> Pixels:
    """Every file decoded, in order, by several threads: uint8 [N, 3, H, W]; DataError for the first broken one."""
    pixels = allocate_pixels(len(paths), crop)

    def fill(start: int) -> int:
        for index in range(start, min(start + CHUNK, len(paths))):
            pixels[index] = read_pixels(paths[index], resize, crop, interpolation)
        return min(start + CHUNK, len(paths))

    pool = ThreadPoolExecutor(available_processors())
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
