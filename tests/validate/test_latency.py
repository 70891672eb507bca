"""The measurement on real models; its statistics have their own tests."""

import time
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest

from atopipe.validate import stopwatch as stopwatch_module
from atopipe.validate.latency import (
    DISCARDED,
    MAX_RUNS,
    MIN_BLOCKS,
    MIN_KEPT,
    AATest,
    Comparison,
    InterleavedTimings,
    LatencyError,
    LatencySummary,
    runs_per_switch,
    time_interleaved,
)
from atopipe.validate.session import Session, open_session
from atopipe.validate.stopwatch import WARM_RUNS, Stopwatch, warm_up
from atopipe.validate.timing_statistics import Interval


def test_the_smaller_model_is_faster_within_the_time_that_was_given(models, images) -> None:
    start = time.perf_counter()
    result = time_interleaved([models[32], models[8]], images, budget_s=2.0).compare(0, 1)
    assert 1.8 < time.perf_counter() - start < 10
    assert 0 < result.kept <= 1
    assert (result.threads, result.batch) == (1, 1)
    if result.ratio is None and result.kept < 0.5:
        pytest.skip(f"only {result.kept:.0%} of timed runs were not preempted")
    assert result.blocks >= MIN_BLOCKS
    assert result.ratio.low <= result.ratio.estimate <= result.ratio.high < 0.8
    assert result.first.p50_ms > result.second.p50_ms > 0
    assert result.first.p90_ms is None or result.first.p90_ms >= result.first.p50_ms


def test_few_blocks_are_measured_even_without_time(models, images) -> None:
    result = time_interleaved([models[8]] * 2, images, budget_s=1e-6, batch=4).compare(0, 1)
    assert result.first.runs + result.second.runs == round(result.kept * MIN_BLOCKS * 4 * 2)
    assert result.first.p90_ms is None


def test_the_order_of_several_models_favours_none(models, images) -> None:
    timings = time_interleaved([models[8], models[32], models[8]], images, budget_s=1e-6, seed=3)
    orders = set()
    for block in range(MIN_BLOCKS):
        own = timings.model[timings.block == block]
        order = own.reshape(-1, 2)[:, 0].tolist()  # two counted runs per switch
        assert own.tolist() == np.repeat(order, 2).tolist()
        assert order == order[::-1]
        assert sorted(order[:3]) == [0, 1, 2]
        orders.add(tuple(order))
    assert len(orders) > 1
    same = time_interleaved([models[8], models[32], models[8]], images, budget_s=1e-6, seed=3)
    np.testing.assert_array_equal(same.model, timings.model)


def test_two_of_several_models_are_compared_by_their_own_runs() -> None:
    """Model 0 takes 1 s, model 1 takes 2 s, model 2 takes 3 s and always waits for its processor."""
    model = np.tile([0, 1, 2, 2, 1, 0], MIN_BLOCKS)
    wall, block = model + 1.0, np.repeat(np.arange(MIN_BLOCKS), 6)
    timings = InterleavedTimings(wall, np.where(model == 2, 0.5, 1.0) * wall, block, model, 1, 1, 1.0, 0)
    pair = timings.compare(0, 1)
    assert (pair.ratio, pair.kept, pair.blocks) == (Interval(2.0, 2.0, 2.0), 1.0, MIN_BLOCKS)
    assert (pair.first.p50_ms, pair.second.p50_ms, pair.first.runs) == (1000, 2000, 2 * MIN_BLOCKS)
    assert timings.compare(1, 0).ratio == Interval(0.5, 0.5, 0.5)
    lost = timings.compare(0, 2)
    assert (lost.ratio, lost.kept, lost.second.runs) == (None, 0.5, 0)
    assert lost.inconclusive_because == "only 0 blocks of runs were not preempted"


def test_a_model_is_as_fast_as_itself(models, images) -> None:
    result = AATest(time_interleaved([models[32]] * 2, images, budget_s=1.5).compare(0, 1), tolerance=0.1)
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
def test_an_a_a_test_asks_for_one(ratio: Interval | None, passed: bool) -> None:
    times = LatencySummary(0, None, None)
    assert AATest(Comparison(times, times, ratio, 10, 1.0, 1, 1, 1.0), 0.02).passed is passed


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


def test_a_slow_pair_gets_fewer_runs_per_switch() -> None:
    assert runs_per_switch(run_s=1e-4, budget_s=10) == MAX_RUNS
    assert runs_per_switch(run_s=10.0, budget_s=10) == 2
    runs = runs_per_switch(run_s=0.08, budget_s=10)
    assert 2 < runs < MAX_RUNS
    assert 10 * 2 * (runs + DISCARDED) * 0.08 <= 10 < 10 * 2 * (runs + 1 + DISCARDED) * 0.08


@pytest.mark.parametrize("batch", [0, 21])
def test_a_batch_that_cannot_be_made_is_refused(batch: int, models, images) -> None:
    with pytest.raises(LatencyError, match=rf"^a batch of {batch} cannot be made from 20 images: choose 1 to 20$"):
        time_interleaved([models[8]] * 2, images, batch=batch)


def test_the_interval_of_a_latency_holds_its_median(models, images) -> None:
    result = time_interleaved([models[8], models[32]], images, budget_s=0.3).compare(0, 1)
    for times in (result.first, result.second):
        if times.interval_ms is not None:
            assert times.interval_ms[0] <= times.p50_ms <= times.interval_ms[1]
    assert (result.inconclusive_because is None) == (result.ratio is not None and result.kept >= MIN_KEPT)


@pytest.mark.parametrize(
    ("ratio", "kept", "because"),
    [
        (Interval(1.0, 0.9, 1.1), 0.9, None),
        (Interval(1.0, 0.9, 1.1), 0.5, "only 50 % of timed runs were not preempted"),
        (None, 0.9, "only 3 blocks of runs were not preempted"),
    ],
)
def test_a_measurement_on_a_busy_machine_is_inconclusive(
    ratio: Interval | None, kept: float, because: str | None
) -> None:
    times = LatencySummary(0, None, None)
    assert Comparison(times, times, ratio, 3, kept, 1, 1, 1.0).inconclusive_because == because


def test_a_machine_that_fails_an_a_a_test_cannot_compare() -> None:
    times = LatencySummary(0, None, None)
    test = AATest(Comparison(times, times, Interval(1.25, 1.2, 1.3), 10, 1.0, 1, 1, 1.0), 0.02)
    assert test.inconclusive_because == "in an A/A test on this machine a model showed 1.250 times its own latency"


class Counted(Session):
    """A session that counts its runs."""

    runs: ClassVar[list[int]] = []

    def run(self, images: np.ndarray) -> np.ndarray:
        self.runs.append(len(images))
        return super().run(images)


def test_a_model_is_warm_when_two_windows_agree_and_never_after_one(models, images, monkeypatch) -> None:
    monkeypatch.setattr(stopwatch_module, "WARM_SECONDS", 0.0)  # as for a model so slow that one window takes longer
    opened = open_session(models[8])
    session = Counted(opened.runtime, opened.input_name, opened.provider, opened.threads, opened.optimisation)
    warm_up(Stopwatch(images, batch=1, threads=1), session, budget_s=60.0)
    assert len(Counted.runs) >= 2 * WARM_RUNS


TICK = 0.0156  # seconds: how the processor's clocks advance on Windows


def test_a_clock_too_coarse_to_see_a_preemption_drops_no_run(models, images, monkeypatch) -> None:
    fine, known = time.thread_time, time.get_clock_info
    coarse = SimpleNamespace(resolution=TICK)
    monkeypatch.setattr(time, "thread_time", lambda: fine() // TICK * TICK)
    monkeypatch.setattr(time, "get_clock_info", lambda name: coarse if name == "thread_time" else known(name))
    found = time_interleaved([models[8], models[32]], images, budget_s=0.3).compare(0, 1)
    assert (found.kept, found.inconclusive_because) == (1.0, None)
    assert found.ratio.low > 1
