"""Accuracy over a data set, its interval, and the images on which two models differ."""

import numpy as np
import pytest
from scipy.stats import binom

from atopipe.validate.accuracy import AccuracyError, Flips, binomial_interval, flips, measure_accuracy


def one_hot(images: np.ndarray) -> np.ndarray:
    """Answer with the class which is written into the first pixel."""
    classes = images[:, 0, 0, 0].astype(int)
    return -((np.arange(10)[None, :] - classes[:, None]) % 10).astype(np.float32)


def batches_of(answers: list[int], labels: list[int], size: int):
    images = np.zeros((len(answers), 3, 2, 2), np.float32)
    images[:, 0, 0, 0] = answers
    for start in range(0, len(answers), size):
        yield images[start : start + size], np.array(labels[start : start + size], dtype=np.int64)


@pytest.mark.parametrize("size", [1, 4, 6])
def test_every_image_counts_once_whatever_the_batches(size: int) -> None:
    answers, labels = [0, 1, 2, 3, 4, 5], [0, 1, 6, 3, 9, 4]
    accuracy = measure_accuracy(one_hot, batches_of(answers, labels, size))
    assert (accuracy.correct, accuracy.count, accuracy.top1) == (3, 6, 0.5)
    assert accuracy.predictions.tolist() == answers


def test_flips_are_counted_by_direction() -> None:
    labels = np.array([0, 0, 0, 0, 0])
    assert flips(np.array([0, 0, 1, 1, 1]), np.array([0, 1, 0, 1, 2]), labels) == Flips(5, same=2, gained=1, lost=1)


@pytest.mark.parametrize(("successes", "count"), [(0, 20), (1, 20), (13, 20), (20, 20), (351, 360)])
def test_the_interval_ends_where_the_tails_are_two_and_a_half_percent(successes: int, count: int) -> None:
    low, high = binomial_interval(successes, count)
    assert low <= successes / count <= high
    if successes > 0:
        assert binom.sf(successes - 1, count, low) == pytest.approx(0.025)
    else:
        assert low == 0
    if successes < count:
        assert binom.cdf(successes, count, high) == pytest.approx(0.025)
    else:
        assert high == 1


def test_what_has_no_accuracy_is_refused() -> None:
    with pytest.raises(AccuracyError, match=r"^the data set has no images to measure the accuracy on$"):
        measure_accuracy(one_hot, [])
    with pytest.raises(AccuracyError, match=r"^the model gives a logit that is not a finite number, so it has no"):
        measure_accuracy(lambda images: one_hot(images) * np.nan, batches_of([1], [1], 1))
    with pytest.raises(AccuracyError, match=r"^the labels go from 1 to 10, but the model has 10 classes$"):
        measure_accuracy(one_hot, batches_of([1, 2], [1, 10], 2))


@pytest.mark.parametrize(("lost", "gained", "count"), [(0.02, 0.02, 300), (0.06, 0.01, 150), (0.005, 0.0, 400)])
def test_the_interval_of_the_drop_covers_the_truth_in_95_of_100_samples(lost: float, gained: float, count: int) -> None:
    drawn = np.random.default_rng(0).multinomial(count, [lost, gained, 1 - lost - gained], size=2000)
    intervals = [Flips(count, int(s), int(g), int(n)).drop_interval() for n, g, s in drawn]
    assert np.mean([low <= lost - gained <= high for low, high in intervals]) >= 0.94


def test_the_drop_counts_what_was_lost_less_what_was_gained() -> None:
    change = Flips(100, same=94, gained=1, lost=3)
    low, high = change.drop_interval()
    assert change.drop == 0.02
    assert -0.04 < low < 0 < 0.02 < high < 0.08
    assert Flips(10, same=0, gained=0, lost=10).drop_interval()[1] == 1
    assert Flips(10, same=10, gained=0, lost=0).drop == 0
