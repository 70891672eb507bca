"""Random changes of training images, a whole batch at a time, on the device where the batch is.

Pure functions of (images [B, C, H, W] in 0..255, generator); every image draws its own parameters.
"""

import math
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from atopipe.pipeline.data.preprocessing import SMALL, Size

Augmentation = Callable[[Tensor, torch.Generator], Tensor]


def usual_augmentation(size: Size, least_crop: float | None = None) -> Augmentation:
    """Random resized crops of at least the share `least_crop` of the area, by default 0.08 of large images.

    Small images, where nothing is asked for, are padded, and windows cut from them, as is usual on CIFAR.
    """
    if least_crop is not None:
        return partial(resized_crop_flip, size=size, area=(least_crop, 1.0))
    if max(size) <= SMALL:
        return partial(pad_crop_flip, padding=min(size) // 8)
    return partial(resized_crop_flip, size=size)


def unchanged(images: Tensor, generator: torch.Generator) -> Tensor:
    """The images as they are."""
    return images


def pad_crop_flip(images: Tensor, generator: torch.Generator, *, padding: int) -> Tensor:
    """A random window of the images padded with black, mirrored half of the time; same shape and type."""
    batch, channels, height, width = images.shape
    padded = F.pad(images, (padding,) * 4)
    top, left = (_integers(images, generator, 2 * padding + 1) for _ in range(2))
    rows = top + torch.arange(height, device=images.device)
    columns = torch.arange(width, device=images.device)
    columns = left + torch.where(_uniform(images, generator, 0, 1) < 0.5, columns.flip(0), columns)
    places = rows[:, :, None] * padded.shape[3] + columns[:, None, :]  # [B, H, W], in the padded image
    index = places.reshape(batch, 1, -1).expand(-1, channels, -1)
    return padded.flatten(2).gather(2, index).view_as(images)


def shift_rotate(images: Tensor, generator: torch.Generator, *, shift: float, degrees: float) -> Tensor:
    """The images moved by up to `shift` of their size and turned by up to `degrees`, black outside: float32."""
    height, width = images.shape[2:]
    angle = _uniform(images, generator, -math.radians(degrees), math.radians(degrees))
    across, down = (_uniform(images, generator, -2 * shift, 2 * shift) for _ in range(2))  # the image spans -1..1
    cos, sin = angle.cos(), angle.sin()
    rows = (torch.cat((cos, -sin * height / width, across), 1), torch.cat((sin * width / height, cos, down), 1))
    return _resample(images, torch.stack(rows, 1), (height, width), outside="zeros")


def resized_crop_flip(
    images: Tensor,
    generator: torch.Generator,
    *,
    size: tuple[int, int],
    area: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> Tensor:
    """A random window of a share of the area and of a ratio width / height, scaled to `size`, mirrored half the time.

    A window wider or higher than the image is cut to it. float32.
    """
    share = _uniform(images, generator, *area)
    proportion = _uniform(images, generator, math.log(ratio[0]), math.log(ratio[1])).exp()
    wide, high = (share * proportion).sqrt().clamp(max=1), (share / proportion).sqrt().clamp(max=1)
    across, down = ((1 - extent) * _uniform(images, generator, -1, 1) for extent in (wide, high))
    wide = torch.where(_uniform(images, generator, 0, 1) < 0.5, -wide, wide)
    nothing = torch.zeros_like(wide)
    rows = (torch.cat((wide, nothing, across), 1), torch.cat((nothing, high, down), 1))
    return _resample(images, torch.stack(rows, 1), size, outside="border")


def center_crop(images: Tensor, size: tuple[int, int]) -> Tensor:
    """The central `size` (height, width) of the images."""
    top, left = ((have - want) // 2 for have, want in zip(images.shape[2:], size, strict=True))
    return images[:, :, top : top + size[0], left : left + size[1]]


def _resample(images: Tensor, affine: Tensor, size: tuple[int, int], outside: str) -> Tensor:
    """Bilinear; `affine` [B, 2, 3] maps places of the result to places of the image, both -1..1, x first."""
    grid = F.affine_grid(affine, [*images.shape[:2], *size], align_corners=False)
    return F.grid_sample(images.float(), grid, padding_mode=outside, align_corners=False)


def _uniform(images: Tensor, generator: torch.Generator, low: float, high: float) -> Tensor:
    draws = torch.rand(len(images), 1, generator=generator, device=generator.device)
    return (low + (high - low) * draws).to(images.device)


def _integers(images: Tensor, generator: torch.Generator, below: int) -> Tensor:
    return torch.randint(below, (len(images), 1), generator=generator, device=generator.device).to(images.device)
