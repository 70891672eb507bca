"""`digits`: the 1,797 scans of handwritten digits that scikit-learn carries, 8x8 pixels of 17 greys."""

from functools import partial

import numpy as np
import torch
from PIL import Image

from atopipe.pipeline.augment import Augmentation, plain, shift_rotate
from atopipe.pipeline.images import DataError, OnProgress, Pixels, Preprocessing, channel_statistics, to_pixels
from atopipe.pipeline.splits import Data, InMemory, Request, Split

SIDE = 32  # four times the scans' own
WHITE = 16
AUGMENTATION: Augmentation = partial(shift_rotate, shift=2 / 32, degrees=10.0)


def load(argument: str, request: Request, on_progress: OnProgress | None = None) -> Data:
    """The digits, resized, split at random with the same shares of each class in both parts."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    scans, labels = load_digits(return_X_y=True)
    side = request.input_size or SIDE
    pixels = np.stack([_pixels(scan.reshape(8, 8), side) for scan in scans])
    try:
        train, val = train_test_split(
            np.arange(len(labels)), test_size=request.val_fraction, stratify=labels, random_state=request.seed
        )
    except ValueError as error:
        raise DataError(
            f"a validation fraction of {request.val_fraction} is impossible with digits: use 0.2"
        ) from error
    mean, std = channel_statistics(pixels[train])
    preprocessing = Preprocessing((side, side), (side, side), mean, std)

    def split(indices: np.ndarray, augmentation: Augmentation) -> Split:
        images = InMemory(torch.from_numpy(pixels[indices]))
        return Split(images, torch.from_numpy(labels[indices].astype(np.int64)), preprocessing, augmentation)

    description = (
        f"digits: {len(labels):,} scans of handwritten digits that come with scikit-learn, 10 classes, "
        f"{side}x{side} pixels ({len(train):,} for training, {len(val):,} for validation)"
    )
    names = tuple(str(digit) for digit in range(10))
    return Data("digits", description, names, preprocessing, split(train, AUGMENTATION), split(val, plain))


def _pixels(scan: np.ndarray, side: int) -> Pixels:
    image = Image.fromarray(np.round(scan * 255 / WHITE).astype(np.uint8))
    return to_pixels(image, (side, side), (side, side))
