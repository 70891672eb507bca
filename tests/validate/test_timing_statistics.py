"""Pure statistics, on samples whose truth is known."""

import numpy as np
import pytest

from atopipe.validate.timing_statistics import block_ratios, bootstrap_median, percentile, undisturbed

BLOCKS, RUNS = 12, 20  # runs per model and block


def times(generator: np.random.Generator, ratio: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Make run times whose true ratio is known, on a machine that drifts by a quarter from block to block."""
    block = np.repeat(np.arange(BLOCKS), 2 * RUNS)
    is_second = np.tile(np.repeat([False, True], RUNS), BLOCKS)
    drift = generator.uniform(1.0, 1.25, BLOCKS)[block]
    noise = generator.lognormal(0.0, 0.05, len(block))
    return np.where(is_second, ratio, 1.0) * drift * noise, block, is_second


def test_runs_that_lost_the_processor_are_dropped() -> None:
    wall = np.array([1.00, 1.05, 1.06, 9.0])
    assert undisturbed(wall, np.ones(4)).tolist() == [True, True, False, False]


def test_the_filter_recovers_the_ratio_which_preemption_hides() -> None:
    generator = np.random.default_rng(0)
    cpu, block, is_second = times(generator, ratio=0.4)
    disturbed = is_second & (generator.random(len(cpu)) < 0.6)
    wall = np.where(disturbed, cpu + 3.0, cpu)
    keep = undisturbed(wall, cpu)
    assert np.median(block_ratios(wall, block, is_second)) > 1
    assert np.median(block_ratios(wall[keep], block[keep], is_second[keep])) == pytest.approx(0.4, rel=0.02)


def test_the_ratio_is_unbiased_under_drift() -> None:
    generator = np.random.default_rng(1)
    estimates = [np.median(block_ratios(*times(generator, ratio=0.4))) for _ in range(200)]
    assert np.mean(estimates) == pytest.approx(0.4, rel=2e-3)


def test_a_block_without_one_of_the_models_gives_no_ratio() -> None:
    seconds, block, is_second = np.array([1.0, 3.0, 5.0]), np.array([0, 0, 1]), np.array([False, True, True])
    assert block_ratios(seconds, block, is_second).tolist() == [3.0]


def test_the_interval_covers_the_truth_nine_times_in_ten_or_more() -> None:
    generator = np.random.default_rng(2)
    covered = 0
    for _ in range(300):
        interval = bootstrap_median(block_ratios(*times(generator, ratio=0.7)), generator, resamples=400)
        covered += interval.low <= 0.7 <= interval.high
    assert 0.9 <= covered / 300 < 1.0


def test_the_interval_repeats_with_its_seed_and_holds_its_estimate() -> None:
    values = np.random.default_rng(3).normal(1.0, 0.1, 11)
    first, second = (bootstrap_median(values, np.random.default_rng(4)) for _ in range(2))
    assert first == second
    assert first.low < first.estimate == np.median(values) < first.high


@pytest.mark.parametrize(("fraction", "needed"), [(0.9, 64), (0.95, 130), (0.99, 662)])
def test_a_percentile_needs_its_sample(fraction: float, needed: int) -> None:
    assert percentile(np.ones(needed - 1), fraction) is None
    assert percentile(np.linspace(0, 1, needed), fraction) == pytest.approx(fraction)


def test_no_samples_have_no_median() -> None:
    assert percentile(np.array([]), 0.5) is None
