"""`--normalize`: whose mean and deviation the images are normalised with."""

import math

MEAN_STD = tuple[tuple[float, ...], tuple[float, ...]]


def parse_normalisation(text: str) -> MEAN_STD | None:
    """Mean and deviation per channel, or one of each for all three; None for `weights` and `data`.

    Raises ValueError where it is neither.
    """
    if text in ("weights", "data"):
        return None
    parts = [_numbers(part) for part in text.split(":")]
    if len(parts) != 2 or not all(_fits(part) for part in parts) or min(parts[1]) <= 0:
        raise ValueError(text)
    return parts[0], parts[1]


def _numbers(text: str) -> tuple[float, ...]:
    return tuple(float(number) for number in text.split(","))


def _fits(numbers: tuple[float, ...]) -> bool:
    """One or three numbers; pixels go from 0 to 1, so that whoever means 0 to 255 gives larger ones."""
    return len(numbers) in (1, 3) and all(math.isfinite(number) and -1 <= number <= 2 for number in numbers)
