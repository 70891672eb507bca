"""`digits`: the 1,797 scans of handwritten digits that scikit-learn carries, 8x8 pixels of 17 greys."""

from functools import partial
from typing import TYPE_CHECKING

from atopipe.pipeline.data.source import DataSource, OnProgress, Request
from atopipe.pipeline.system.errors import DataError

if TYPE_CHECKING:
    from atopipe.pipeline.data.dataset import Data

SIDE = 32  # four times the scans' own
WHITE = 16
SHIFT, DEGREES = 2 / 32, 10.0  # by which training images are moved and turned at most


def load(argument: str, request: Request, on_progress: OnProgress | None = None) -> "Data":
    """The digits, resized, split at random with the same shares of each class in both parts."""
    import numpy as np
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    from atopipe.pipeline.data.augment import shift_rotate
    from atopipe.pipeline.data.sources.arrays import LabelledImages, data_from_arrays

    scans, digits = load_digits(return_X_y=True)
    pixels = np.round(scans.reshape(-1, 1, 8, 8) * 255 / WHITE).astype(np.uint8)
    try:
        parts = train_test_split(
            pixels, digits.astype(np.int64), test_size=request.val_fraction, stratify=digits, random_state=request.seed
        )
    except ValueError as error:
        raise DataError(
            f"a validation fraction of {request.val_fraction} is impossible with digits: use 0.2"
        ) from error
    train_pixels, val_pixels, train_labels, val_labels = parts
    return data_from_arrays(
        "digits",
        f"digits: {len(digits):,} scans of handwritten digits that come with scikit-learn",
        tuple(str(digit) for digit in range(10)),
        LabelledImages(train_pixels, train_labels),
        LabelledImages(val_pixels, val_labels),
        input_size=request.input_size or SIDE,
        augmentation=partial(shift_rotate, shift=SHIFT, degrees=DEGREES),
    )


SOURCE = DataSource("digits", load, libraries=("scikit-learn",))
