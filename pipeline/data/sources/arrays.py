"""A data set from arrays in memory: what `digits`, `cifar10`, `cifar100` and the users' factories share."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from atopipe.pipeline.data.augment import Augmentation, unchanged, usual_augmentation
from atopipe.pipeline.data.dataset import Data, Split
from atopipe.pipeline.data.decoding import resized
from atopipe.pipeline.data.preprocessing import Pixels, Preprocessing, channel_statistics
from atopipe.pipeline.data.stores import InMemory


@dataclass(frozen=True, eq=False)
class LabelledImages:
    """`pixels` uint8 [N, C, H, W] with one channel (grey) or three (RGB); `labels` int64 [N], counted from 0."""

    pixels: Pixels
    labels: NDArray[np.int64]


def data_from_arrays(
    name: str,
    title: str,
    classes: tuple[str, ...],
    train: LabelledImages,
    val: LabelledImages,
    *,
    input_size: int | None,
    augmentation: Augmentation | None = None,
    least_crop: float | None = None,
) -> Data:
    """The images as RGB, scaled to `input_size` where it is given; `title` begins the description.

    Training images change as `augmentation` says, or as is usual. Mean and deviation are those of the training images.
    """
    height, width = (input_size, input_size) if input_size else train.pixels.shape[2:]
    pixels = [resized(part.pixels, (height, width)) for part in (train, val)]
    preprocessing = Preprocessing((height, width), (height, width), *channel_statistics(pixels[0]))
    augmentations = (augmentation or usual_augmentation((height, width), least_crop), unchanged)
    splits = (
        Split(
            InMemory(torch.from_numpy(np.require(images, requirements=["C", "W"]))),
            torch.from_numpy(part.labels),
            preprocessing,
            augment,
        )
        for images, part, augment in zip(pixels, (train, val), augmentations, strict=True)
    )
    description = (
        f"{title}, {len(classes):,} classes, {width}x{height} pixels "
        f"({len(train.labels):,} for training, {len(val.labels):,} for validation)"
    )
    return Data(name, description, classes, preprocessing, *splits)
