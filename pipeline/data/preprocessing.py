"""From an image file to the network's input; whoever deploys the network repeats exactly `preprocess`.

Pixels stay uint8 until they are on the device: a quarter of the memory, and the same values everywhere.
"""

import dataclasses
import json
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Size = tuple[int, int]  # height, width
Pixels = NDArray[np.uint8]  # [C, H, W], or [N, C, H, W]


ORIENTATION = 0x0112  # the EXIF tag, and what undoes each of its values
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
SMALL = 64  # up to here images are used whole; above, a margin leaves room for random crops
CHUNK = 64  # images a thread decodes at a time
BILINEAR = "bilinear"
STRETCHED = 16  # an image that scaled as a whole takes so many times the pixels asked for is cut before it is enlarged
SIXTEEN_BITS = frozenset({"PNG", "PPM"})  # formats of which Pillow gives 16 bits of grey as mode I, as 0..65535


class UnsupportedImageError(Exception):
    """An image that is whole but cannot become RGB for a reason; the message goes on from the file's name."""


FIXED_STEPS = {
    "orientation": "exif",
    "transparency": "over white",
    "channel_order": "RGB",
    "layout": "NCHW",
    "fit": "cover",
    "interpolation": "",  # as each network's says
    "crop": "center",
    "scale": 1 / 255,
}


@dataclass(frozen=True)
class Preprocessing:
    """How an image becomes network input.

    The image is turned upright as its EXIF data says, laid over white if transparent, made RGB, scaled (keeping its
    proportions, antialiased, by PIL's resampling of the name `interpolation`) until it just covers `resize`, cut to the
    central `size`, divided by 255; then `mean` is subtracted and the result divided by `std`, per channel. Sizes are
    (height, width).
    """

    size: Size
    resize: Size
    mean: tuple[float, ...]
    std: tuple[float, ...]
    channels: int = 3
    interpolation: str = BILINEAR

    def to_json(self) -> str:
        """Every field, and the steps that are the same for all networks, for readers without atopipe."""
        fields = dataclasses.asdict(self)
        interpolation = f"{fields.pop('interpolation')}, antialiased"
        return json.dumps({**fields, **FIXED_STEPS, "interpolation": interpolation})

    @classmethod
    def from_json(cls, text: str) -> "Preprocessing":
        """Read what `to_json` wrote."""
        values = json.loads(text)
        (height, width), (least_height, least_width) = values["size"], values["resize"]
        mean, std = tuple(values["mean"]), tuple(values["std"])
        interpolation = values["interpolation"].partition(",")[0]
        return cls((height, width), (least_height, least_width), mean, std, values["channels"], interpolation)


def resize_for(size: Size) -> Size:
    """What an image is scaled to cover before `size` is cut out: 256 for 224, nothing extra for small images.

    The margin is even, so that the centre of a centre is the centre.
    """
    margin = 0 if max(size) <= SMALL else 2 * round(min(size) / 14)
    return size[0] + margin, size[1] + margin


def preprocess(image: Image.Image, preprocessing: Preprocessing) -> NDArray[np.float32]:
    """The network's input [C, H, W] for one image."""
    settings = preprocessing
    pixels = to_pixels(image, settings.resize, settings.size, settings.interpolation).astype(np.float32)
    mean, std = (np.asarray(v, np.float32)[:, None, None] for v in (preprocessing.mean, preprocessing.std))
    normalised: NDArray[np.float32] = (pixels / np.float32(255) - mean) / std
    return normalised


def to_pixels(image: Image.Image, resize: Size, crop: Size, interpolation: str = BILINEAR) -> Pixels:
    """The central `crop` of the image scaled to cover `resize`: uint8 [3, H, W]."""
    _require_known_range(image)
    image = to_rgb(upright(image))
    scale = max(resize[0] / image.height, resize[1] / image.width)
    height, width = (max(least, round(n * scale)) for least, n in zip(resize, (image.height, image.width), strict=True))
    resampling = Image.Resampling[interpolation.upper()]
    top, left = (height - crop[0]) // 2, (width - crop[1]) // 2
    if height * width > STRETCHED * resize[0] * resize[1]:  # a line of 1x30000 pixels would take 19 GB
        down, across = image.height / height, image.width / width
        box = (left * across, top * down, (left + crop[1]) * across, (top + crop[0]) * down)
        image = resized(image, crop, resampling, box)
        top, left = 0, 0
    else:
        image = resized(image, (height, width), resampling, (0, 0, image.width, image.height))
    pixels = np.asarray(image)[top : top + crop[0], left : left + crop[1]]
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))


def resized(
    image: Image.Image, size: Size, resampling: Image.Resampling, box: tuple[float, float, float, float]
) -> Image.Image:
    """The `box` (left, top, right, bottom) of the image, scaled to `size` along one axis after the other.

    Across first, but down first if it is a strip, more than 16 times as high as wide. Asked for both at once, Pillow
    chooses an order by the picture and by its own version (from 13.0 on), and what it rounds in between differs.
    """
    left, top, right, bottom = box
    if image.height > STRETCHED * image.width:
        image = image.resize((image.width, size[0]), resampling, (0, top, image.width, bottom))
        return image.resize((size[1], size[0]), resampling, (left, 0, right, size[0]))
    image = image.resize((size[1], image.height), resampling, (left, 0, right, image.height))
    return image.resize((size[1], size[0]), resampling, (0, top, size[1], bottom))


def upright(image: Image.Image) -> Image.Image:
    """The image turned as its EXIF data says; a damaged EXIF block turns nothing, as in other viewers."""
    image.load()  # some formats know what is to be turned, or have turned it, only now
    try:
        turn = TURNS.get(image.getexif().get(ORIENTATION, 1))
    except Exception:  # the parser raises nearly anything on broken bytes, and the pixels are whole
        return image
    return image if turn is None else image.transpose(turn)


def _require_known_range(image: Image.Image) -> None:
    """Raises UnsupportedImageError for numbers of which no format says which is black and which is white."""
    if image.mode == "F" or (image.mode == "I" and image.format not in SIXTEEN_BITS):
        kind = "floating-point numbers" if image.mode == "F" else "32-bit integers"
        raise UnsupportedImageError(f"has {kind} whose range nothing defines: save it with 8 or 16 bits a channel")


def to_rgb(image: Image.Image) -> Image.Image:
    """RGB as a person sees it: 16 bits scaled to 8, over white where transparent."""
    if image.mode.startswith("I"):  # 16 bits of grey: Pillow's own conversion clips instead of scaling
        return Image.fromarray((np.asarray(image) // 257).clip(0, 255).astype(np.uint8)).convert("RGB")
    try:
        if image.has_transparency_data:
            image = image.convert("RGBA")
            return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
        return image.convert("RGB")
    except ValueError as error:  # LAB, say
        raise UnsupportedImageError(f"has the colour mode {image.mode}: save it as RGB") from error


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
