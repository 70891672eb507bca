"""The measurement on real models; its statistics have their own tests."""

import time

import numpy as np
import pytest

from atopipe.validate.latency import (
    DISCARDED,
    MAX_RUNS,
    MIN_BLOCKS,
    MIN_KEPT,
    Arm,
    Comparison,
    LatencyError,
    NullTest,
    Stopwatch,
    Turns,
    compare_latency,
    null_test,
    runs_per_turn,
    time_in_turns,
)
from atopipe.validate.session import Session, open_session
from atopipe.validate.timing_statistics import Interval


def test_the_smaller_model_is_faster_within_the_time_that_was_given(models, images) -> None:
    start = time.perf_counter()
    result = compare_latency(models[32], models[8], images, budget_s=2.0)
    assert 1.8 < time.perf_counter() - start < 10
    assert 0 < result.kept <= 1
    assert (result.threads, result.batch) == (1, 1)
    if result.ratio is None and result.kept < 0.5:
        pytest.skip(f"only {result.kept:.0%} of the runs kept their processor")
    assert result.blocks >= MIN_BLOCKS
    assert result.ratio.low <= result.ratio.estimate <= result.ratio.high < 0.8
    assert result.first.p50_ms > result.second.p50_ms > 0
    assert result.first.p90_ms is None or result.first.p90_ms >= result.first.p50_ms


def test_few_blocks_are_measured_even_without_time(models, images) -> None:
    result = compare_latency(models[8], models[8], images, budget_s=1e-6, batch=4)
    assert result.first.runs + result.second.runs == round(result.kept * MIN_BLOCKS * 4 * 2)
    assert result.first.p90_ms is None


def test_several_models_take_turns_that_favour_none(models, images) -> None:
    turns = time_in_turns([models[8], models[32], models[8]], images, budget_s=1e-6, seed=3)
    orders = set()
    for block in range(MIN_BLOCKS):
        own = turns.model[turns.block == block]
        order = own.reshape(-1, 2)[:, 0].tolist()  # two counted runs per turn
        assert own.tolist() == np.repeat(order, 2).tolist()
        assert order == order[::-1]
        assert sorted(order[:3]) == [0, 1, 2]
        orders.add(tuple(order))
    assert len(orders) > 1
    same = time_in_turns([models[8], models[32], models[8]], images, budget_s=1e-6, seed=3)
    np.testing.assert_array_equal(same.model, turns.model)


def test_two_of_several_models_are_compared_by_their_own_runs() -> None:
    """Model 0 takes 1 s, model 1 takes 2 s, model 2 takes 3 s and always waits for its processor."""
    model = np.tile([0, 1, 2, 2, 1, 0], MIN_BLOCKS)
    wall, block = model + 1.0, np.repeat(np.arange(MIN_BLOCKS), 6)
    turns = Turns(wall, np.where(model == 2, 0.5, 1.0) * wall, block, model, 1, 1, 1.0, 0)
    pair = turns.compare(0, 1)
    assert (pair.ratio, pair.kept, pair.blocks) == (Interval(2.0, 2.0, 2.0), 1.0, MIN_BLOCKS)
    assert (pair.first.p50_ms, pair.second.p50_ms, pair.first.runs) == (1000, 2000, 2 * MIN_BLOCKS)
    assert turns.compare(1, 0).ratio == Interval(0.5, 0.5, 0.5)
    lost = turns.compare(0, 2)
    assert (lost.ratio, lost.kept, lost.second.runs) == (None, 0.5, 0)
    assert lost.doubt == "only 0 blocks of runs were left undisturbed"


def test_a_model_is_as_fast_as_itself(models, images) -> None:
    result = null_test(models[32], images, budget_s=1.5, tolerance=0.1)
    assert result.passed or result.comparison.kept < 0.5


@pytest.mark.parametrize(
    ("ratio", "passed"),
    [
        (Interval(1.0, 0.99, 1.01), True),
        (Interval(1.03, 1.019, 1.04), True),
        (Interval(1.05, 1.03, 1.06), False),
        (Interval(0.9, 0.8, 0.97), False),
        (None, False),
    ],
)
def test_the_null_test_asks_for_one(ratio: Interval | None, passed: bool) -> None:
    arm = Arm(0, None, None)
    assert NullTest(Comparison(arm, arm, ratio, 10, 1.0, 1, 1, 1.0), 0.02).passed is passed


def test_the_stopwatch_goes_through_all_whole_batches_in_turn(models, images) -> None:
    seen = []

    class Recorder(Session):
        def run(self, images: np.ndarray) -> np.ndarray:
            seen.append(images.copy())
            return super().run(images)

    session = open_session(models[8])
    recorder = Recorder(session.runtime, session.input_name, session.provider, session.threads, session.optimisation)
    stopwatch = Stopwatch(images, batch=6, threads=1)
    timed = [stopwatch.time(recorder) for _ in range(4)]
    assert all(0 < cpu <= 1.05 * wall + 1e-3 for wall, cpu in timed)
    for got, start in zip(seen, [0, 6, 12, 0], strict=True):
        np.testing.assert_array_equal(got, images[start : start + 6])


def test_a_slow_pair_gets_fewer_runs_per_turn() -> None:
    assert runs_per_turn(run_s=1e-4, budget_s=10) == MAX_RUNS
    assert runs_per_turn(run_s=10.0, budget_s=10) == 2
    turn = runs_per_turn(run_s=0.08, budget_s=10)
    assert 2 < turn < MAX_RUNS
    assert 10 * 2 * (turn + DISCARDED) * 0.08 <= 10 < 10 * 2 * (turn + 1 + DISCARDED) * 0.08


@pytest.mark.parametrize("batch", [0, 21])
def test_a_batch_that_cannot_be_made_is_refused(batch: int, models, images) -> None:
    with pytest.raises(LatencyError, match=rf"^a batch of {batch} cannot be made from 20 images: choose 1 to 20$"):
        compare_latency(models[8], models[8], images, batch=batch)


def test_the_interval_of_a_latency_holds_its_median(models, images) -> None:
    result = compare_latency(models[8], models[32], images, budget_s=0.3)
    for arm in (result.first, result.second):
        if arm.interval_ms is not None:
            assert arm.interval_ms[0] <= arm.p50_ms <= arm.interval_ms[1]
    assert (result.doubt is None) == (result.ratio is not None and result.kept >= MIN_KEPT)


@pytest.mark.parametrize(
    ("ratio", "kept", "doubt"),
    [
        (Interval(1.0, 0.9, 1.1), 0.9, None),
        (Interval(1.0, 0.9, 1.1), 0.5, "only 50 % of the runs kept their processor"),
        (None, 0.9, "only 3 blocks of runs were left undisturbed"),
    ],
)
def test_a_measurement_on_a_busy_machine_is_doubted(ratio: Interval | None, kept: float, doubt: str | None) -> None:
    arm = Arm(0, None, None)
    assert Comparison(arm, arm, ratio, 3, kept, 1, 1, 1.0).doubt == doubt


def test_a_machine_that_finds_a_model_unlike_itself_is_doubted() -> None:
    arm = Arm(0, None, None)
    test = NullTest(Comparison(arm, arm, Interval(1.25, 1.2, 1.3), 10, 1.0, 1, 1, 1.0), 0.02)
    assert test.doubt == "measured against itself, a model showed 1.250 times its own latency on this machine"
