"""From a picture to the network's input, exactly as in training; preprocess.json holds the numbers. Needs no model.

Works with Python 3.9, NumPy 1.22 and Pillow 9, of which devices have old versions.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import IO, Any, Union

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Floats = NDArray[np.float32]
Settings = dict[str, Any]

# Where versions of Pillow before 9.1 have these names, of which later ones warned for a while.
TRANSPOSE: Any = getattr(Image, "Transpose", Image)
RESAMPLING: Any = getattr(Image, "Resampling", Image)
TURNS = {  # what undoes each value of the EXIF tag
    2: TRANSPOSE.FLIP_LEFT_RIGHT,
    3: TRANSPOSE.ROTATE_180,
    4: TRANSPOSE.FLIP_TOP_BOTTOM,
    5: TRANSPOSE.TRANSPOSE,
    6: TRANSPOSE.ROTATE_270,
    7: TRANSPOSE.TRANSVERSE,
    8: TRANSPOSE.ROTATE_90,
}
ORIENTATION = 0x0112
STRETCHED = 16  # a picture that scaled as a whole takes so many times the pixels asked for is cut first


class Failed(Exception):
    """The bundle is not what it should be here. One sentence."""


def preprocess(image: Image.Image, settings: Settings) -> Floats:
    """Turn an image into the network's input [3, H, W], as preprocess.json says."""
    resampling = getattr(RESAMPLING, settings["interpolation"].partition(",")[0].upper())
    return normalise(to_pixels(image, settings["resize"], settings["size"], resampling), settings)


def to_pixels(image: Image.Image, resize: tuple[int, int], crop: tuple[int, int], resampling: Any) -> NDArray[np.uint8]:
    """Upright, over white, RGB, scaled to just cover `resize`, and the central `crop` of that: uint8 [3, H, W]."""
    if image.mode == "F" or (image.mode == "I" and image.format not in ("PNG", "PPM")):
        raise Failed("the picture has numbers whose range nothing defines: save it with 8 or 16 bits a channel")
    image = to_rgb(upright(image))
    scale = max(resize[0] / image.height, resize[1] / image.width)
    height, width = max(resize[0], round(image.height * scale)), max(resize[1], round(image.width * scale))
    top, left = (height - crop[0]) // 2, (width - crop[1]) // 2
    if height * width > STRETCHED * resize[0] * resize[1]:  # cut before it is enlarged
        down, across = image.height / height, image.width / width
        box = (left * across, top * down, (left + crop[1]) * across, (top + crop[0]) * down)
        image = resized(image, crop, resampling, box)
        top, left = 0, 0
    else:
        image = resized(image, (height, width), resampling, (0, 0, image.width, image.height))
    return np.asarray(image)[top : top + crop[0], left : left + crop[1]].transpose(2, 0, 1)


def resized(
    image: Image.Image, size: tuple[int, int], resampling: Any, box: tuple[float, float, float, float]
) -> Image.Image:
    """The `box` of the image scaled to `size`: across, then down; of a strip that is high, down first.

    Asked for both at once, Pillow chooses an order by the picture and by its own version.
    """
    left, top, right, bottom = box
    if image.height > STRETCHED * image.width:
        image = image.resize((image.width, size[0]), resampling, (0, top, image.width, bottom))
        return image.resize((size[1], size[0]), resampling, (left, 0, right, size[0]))
    image = image.resize((size[1], image.height), resampling, (left, 0, right, image.height))
    return image.resize((size[1], size[0]), resampling, (0, top, size[1], bottom))


def upright(image: Image.Image) -> Image.Image:
    """Turned as the EXIF data says, if they can be read."""
    image.load()  # some formats know what is to be turned, or have turned it, only now
    try:
        turn = TURNS.get(image.getexif().get(ORIENTATION, 1))
    except Exception:  # the parser raises nearly anything on broken bytes, and the pixels are whole
        return image
    return image if turn is None else image.transpose(turn)


def to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16 bits of grey
        return Image.fromarray((np.asarray(image) // 257).clip(0, 255).astype(np.uint8)).convert("RGB")
    if has_transparency(image):
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def has_transparency(image: Image.Image) -> bool:
    """As `Image.has_transparency_data`, which Pillow has from 10.1 on."""
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        return True
    return image.mode == "P" and image.palette is not None and image.palette.mode.endswith("A")


def normalise(pixels: NDArray[np.uint8], settings: Settings) -> Floats:
    """uint8 [..., 3, H, W] -> float32: divided by 255, less the mean, divided by the deviation, per channel."""
    mean, std = (np.asarray(settings[name], np.float32)[:, None, None] for name in ("mean", "std"))
    result: Floats = (pixels.astype(np.float32) / np.float32(255) - mean) / std
    return result


def read_picture(source: Union[Path, IO[bytes]], name: str, settings: Settings) -> Floats:
    """The network's input for a file; raises Failed for one that is no picture, damaged, or over 178 megapixels."""
    if isinstance(source, Path) and not source.is_file():  # a pipe would be waited for
        raise Failed(f"{name!r} is not a file: give the path of a picture, or - for standard input")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(source) as image:
                return preprocess(image, settings)
    except (Failed, MemoryError):
        raise
    except Image.DecompressionBombError as error:
        raise Failed(f"{name!r} has more than 178 megapixels, the most that is decoded: scale it down") from error
    except Exception as error:  # decoders raise nearly anything on broken bytes
        raise Failed(f"{name!r} cannot be read as a picture: {error or type(error).__name__}") from error
