"""Phases, learning rate and budget as functions of the step."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atopipe.ato.recipe import ControllerSettings, PhaseSettings, Recipe
from atopipe.ato.schedule import Phase, Schedule, annealed_ratio, learning_rate_factor

fractions = st.tuples(st.floats(0, 0.5), st.floats(0.01, 0.3), st.floats(0.01, 0.2))


@given(fractions, st.integers(2, 5000))
def test_phases_follow_each_other_and_search_and_decay_always_happen(parts: tuple[float, ...], total: int) -> None:
    schedule = Schedule.of(PhaseSettings(*parts), total)
    phases = [schedule.phase(step) for step in range(total)]
    assert phases == sorted(phases, key=list(Phase).index)
    assert Phase.SEARCH in phases
    assert Phase.DECAY in phases


def test_the_same_fractions_serve_a_short_and_a_long_run() -> None:
    phases = PhaseSettings(dense=0.1, search=0.4, decay=0.1)
    assert Schedule.of(phases, 100) == Schedule(10, 50, 60, 100)
    assert Schedule.of(phases, 100_000) == Schedule(10_000, 50_000, 60_000, 100_000)


@given(st.integers(1, 3000), st.floats(0, 0.9))
def test_the_learning_rate_rises_to_one_and_falls_to_almost_zero(total: int, warmup: float) -> None:
    factors = [learning_rate_factor(step, total, warmup) for step in range(total)]
    peak = factors.index(max(factors))
    assert max(factors) == 1
    assert factors[-1] < 0.1 or total * (1 - warmup) < 10
    assert all(0 < f <= 1 for f in factors)
    assert factors[:peak] == sorted(factors[:peak])
    assert factors[peak:] == sorted(factors[peak:], reverse=True)


def test_the_rate_may_be_held_until_the_cut() -> None:
    factors = [learning_rate_factor(step, 100, 0.1, held_until=45) for step in range(100)]
    assert factors[:10] == [learning_rate_factor(step, 100, 0.1) for step in range(10)]
    assert factors[10:46] == [1.0] * 36
    assert factors[45:] == sorted(factors[45:], reverse=True)
    assert 0 < factors[99] < 0.01
    assert learning_rate_factor(99, 100, 0.1, held_until=100) == 1.0


def test_a_limit_falls_to_itself_and_stays() -> None:
    assert annealed_ratio(4.0, 0.0, 0.8) == 4.0
    assert annealed_ratio(4.0, 0.4, 0.8) == pytest.approx(2.0)
    assert annealed_ratio(4.0, 0.8, 0.8) == annealed_ratio(4.0, 1.0, 0.8) == 1.0
    assert annealed_ratio(4.0, 0.0, 0.0) == 1.0


def test_short_runs_take_controller_steps_more_often() -> None:
    long, short = (Schedule.of(PhaseSettings(dense=0.1, search=0.4), total) for total in (10_000, 1000))
    assert len(long.controller_steps(every=10, least=200)) == 400
    assert len(short.controller_steps(every=10, least=200)) == 200
    assert len(short.controller_steps(every=10, least=10_000)) == 400


@given(fractions, st.integers(2, 5000), st.integers(1, 30), st.integers(1, 300))
def test_controller_steps_lie_in_the_search_and_end_it(
    parts: tuple[float, ...], total: int, every: int, least: int
) -> None:
    schedule = Schedule.of(PhaseSettings(*parts), total)
    steps = schedule.controller_steps(every, least)
    assert steps[-1] == schedule.search_end - 1
    assert steps[0] >= schedule.dense_end
    assert len(steps) >= min(least, schedule.search_end - schedule.dense_end)


def test_a_wrong_setting_names_itself_its_value_and_the_range() -> None:
    with pytest.raises(ValueError, match=r"^controller.temperature is 0, but must be above 0$"):
        ControllerSettings(temperature=0)
    with pytest.raises(
        ValueError, match=r"^phases.dense \+ phases.search \+ phases.decay is 1.5, but must be at most 1$"
    ):
        PhaseSettings(0.5, 0.5, 0.5)
    with pytest.raises(ValueError, match=r"^epochs is 0, but must be 1 or more$"):
        Recipe(epochs=0)


def test_one_step_is_too_few() -> None:
    with pytest.raises(ValueError, match="the run has 1 training step, but must have at least 2"):
        Schedule.of(PhaseSettings(), 1)
