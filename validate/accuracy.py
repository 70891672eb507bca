"""Top-1 accuracy over a whole data set, and how two models' answers differ image by image."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import ndtri
from scipy.stats import binomtest

_BELOW, _ABOVE = -1 + 1e-9, 1 - 1e-9  # the range of a drop, without its ends

Images = NDArray[np.float32]
Classes = NDArray[np.int64]


class AccuracyError(Exception):
    """The accuracy cannot be measured. One sentence for the user."""


@dataclass(frozen=True)
class Accuracy:
    """The answers of one model on one data set."""

    correct: int
    count: int
    predictions: Classes  # [N], in the data's order

    @property
    def top1(self) -> float:
        """Fraction of the images whose largest logit is the right one."""
        return self.correct / self.count

    def interval(self, confidence: float = 0.95) -> tuple[float, float]:
        """Return the exact binomial interval of the top-1 accuracy."""
        return binomial_interval(self.correct, self.count, confidence)


@dataclass(frozen=True)
class Flips:
    """How the answers change from one model to another: `gained` became right, `lost` became wrong."""

    count: int
    same: int
    gained: int
    lost: int

    @property
    def drop(self) -> float:
        """How much lower the accuracy became, as a fraction of the images; negative where it rose."""
        return (self.lost - self.gained) / self.count

    def drop_interval(self, confidence: float = 0.95) -> tuple[float, float]:
        """Return the interval of `drop` over images like these, paired: only images whose answer changed count.

        The drops that a score test does not reject (Tango, Statistics in Medicine 17, 1998): near its nominal coverage
        even where hardly any answer changed.
        """
        critical, middle = float(ndtri((1 + confidence) / 2)), min(max(self.drop, _BELOW), _ABOVE)

        def crossing(level: float, start: float, end: float) -> float:
            return float(brentq(lambda drop: self._score(drop) - level, start, end))

        low = -1.0 if self.gained == self.count else crossing(critical, _BELOW, middle)
        high = 1.0 if self.lost == self.count else crossing(-critical, middle, _ABOVE)
        return low, high

    def _score(self, drop: float) -> float:
        """How many standard deviations the observed drop lies above a supposed one, -1 < drop < 1.

        The deviation is that of the most likely pair of rates whose difference is the supposed drop; its rate of gains
        is the larger root of 2 n q^2 + b q - gained (1 - drop) drop = 0, with b as below.
        """
        excess = self.lost - self.gained - self.count * drop
        if excess == 0:
            return 0.0
        b = -self.lost - self.gained + (2 * self.count - self.lost + self.gained) * drop
        root = math.sqrt(max(0.0, b * b + 8 * self.count * self.gained * drop * (1 - drop)))
        gains = (root - b) / (4 * self.count)
        return excess / math.sqrt(self.count * (2 * gains + drop * (1 - drop)))


def measure_accuracy(
    network: Callable[[Images], NDArray[np.float32]], batches: Iterable[tuple[Images, Classes]]
) -> Accuracy:
    """Run a network, such as `Session.run`, over all batches of (images [B, C, H, W], labels [B]).

    Raises:
        AccuracyError: there is no image, a logit is not finite, or a label is none of the network's classes.
    """
    predictions: list[Classes] = []
    correct = 0
    for images, labels in batches:
        logits = network(images)
        _require_sound(logits, labels)
        answers = logits.argmax(1).astype(np.int64)
        predictions.append(answers)
        correct += int(np.sum(answers == labels))
    if not predictions:
        raise AccuracyError("the data set has no images to measure the accuracy on")
    answers = np.concatenate(predictions)
    return Accuracy(correct, len(answers), answers)


def flips(before: Classes, after: Classes, labels: Classes) -> Flips:
    """Compare two models' predictions [N] on the same images."""
    was, is_now = before == labels, after == labels
    return Flips(
        count=len(labels),
        same=int(np.sum(before == after)),
        gained=int(np.sum(~was & is_now)),
        lost=int(np.sum(was & ~is_now)),
    )


def binomial_interval(successes: int, count: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return the exact two-sided interval of a proportion (Clopper and Pearson, Biometrika 26, 1934)."""
    interval = binomtest(successes, count).proportion_ci(confidence)
    return float(interval.low), float(interval.high)


def _require_sound(logits: NDArray[np.float32], labels: Classes) -> None:
    if not np.isfinite(logits).all():
        raise AccuracyError("the model gives a logit that is not a finite number, so it has no accuracy")
    if len(labels) and not 0 <= labels.min() <= labels.max() < logits.shape[1]:
        raise AccuracyError(
            f"the labels go from {labels.min()} to {labels.max()}, but the model has {logits.shape[1]} classes"
        )
