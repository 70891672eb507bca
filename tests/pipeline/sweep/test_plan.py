"""The product of what was given several values, who shares a search with whom, and what is refused."""

import itertools
from collections.abc import Mapping
from typing import Any

import pytest

from atopipe.pipeline.config.load import load_config
from atopipe.pipeline.config.schema import Config
from atopipe.pipeline.sweep.plan import Axis, Member, plan
from atopipe.pipeline.system.errors import UsageError

TARGETS = Axis("target_flops", ("0.7", "0.2", "0.5"))


def configured(chosen: Mapping[str, Any], **more: object) -> Config:
    return load_config(None, {"model.name": "resnet20", **more, **chosen})


def planned(*axes: Axis, independent: bool = False, **more: object) -> tuple[Member, ...]:
    return plan(axes, lambda chosen: configured(chosen, **more), independent=independent)


def test_one_target_is_one_ordinary_run() -> None:
    (member,) = planned(Axis("target_flops", ("0.3",)))
    assert member.config == configured({"target_flops": 0.3})
    assert (member.leader, member.until) == (None, None)


def test_targets_share_the_search_towards_the_tightest() -> None:
    members = planned(TARGETS)
    assert [member.name for member in members] == ["0.2", "0.5", "0.7"]
    assert {member.leader for member in members} == {"0.2"}
    assert {member.until for member in members} == {"search"}
    for member in members:
        assert member.config.shared_search is not None
        assert member.config.shared_search.targets["flops"].value == 0.2
        assert member.config.targets["flops"].value == float(member.name)


def test_independent_runs_are_those_without_a_sweep() -> None:
    members = planned(TARGETS, independent=True)
    assert [member.config for member in members] == [configured({"target_flops": t}) for t in TARGETS.values]
    assert {member.leader for member in members} == {None}


@pytest.mark.parametrize("independent", [False, True])
def test_the_dense_network_is_trained_once_for_all_targets(*, independent: bool) -> None:
    members = planned(TARGETS, independent=independent, baseline=True)
    assert {member.until for member in members} == {"baseline" if independent else "search"}


def test_the_product_of_everything_is_run_and_every_group_has_a_search_of_its_own() -> None:
    models, seeds = Axis("model.name", ("resnet20", "resnet56")), Axis("seed", ("0", "1", "2"))
    epochs = Axis("recipe.epochs", ("12", "24"))
    members = planned(models, epochs, TARGETS, seeds)
    found = {
        (m.config.model.name, m.config.recipe.epochs, m.config.targets["flops"].value, m.config.seed) for m in members
    }
    assert found == set(itertools.product(models.values, (12, 24), (0.7, 0.2, 0.5), (0, 1, 2)))
    assert "resnet56-epochs24-0.5-seed2" in {member.name for member in members}
    for member in members:
        leader = next(other for other in members if other.name == member.leader)
        assert leader.config.targets["flops"].value == 0.2
        same = member.config.model_copy(update={"target_flops": leader.config.target_flops})
        assert same == leader.config


def test_two_costs_are_a_product_and_share_along_the_first() -> None:
    members = planned(Axis("target_flops", ("0.5", "0.3")), Axis("target_params", ("0.6", "0.4")))
    assert {member.leader for member in members} == {"0.3-params0.6", "0.3-params0.4"}


def test_a_latency_target_shares_the_table_of_the_device_as_well() -> None:
    members = planned(Axis("target_latency", ("8ms", "5ms")))
    assert {(member.leader, member.until) for member in members} == {("latency5ms", "search")}
    assert {member.until for member in planned(Axis("target_latency", ("8ms", "5ms")), independent=True)} == {"profile"}


@pytest.mark.parametrize(
    ("axes", "more", "words"),
    [
        ([Axis("target_flops", ("0.5", "50%"))], {}, "--target-flops gives 0.5 and 50%, which are the same run"),
        ([Axis("seed", ("1", "1")), Axis("target_flops", ("0.5",))], {}, "--seeds gives 1 and 1"),
        ([Axis("target_flops", ("0.5", "20M"))], {}, "--target-flops mixes fractions and amounts"),
        ([Axis("target_flops", ("0.5", "1.5"))], {}, "--target-flops is 1.5, but must be a fraction"),
        ([TARGETS], {"recipe": "paper"}, "controller.anneal is 0.*--independent trains every run by itself"),
        ([Axis("recipe.epoch", ("1", "2")), TARGETS], {}, "unknown configuration key 'recipe.epoch'"),
        ([Axis("model.name", ("a:b", "a/b")), TARGETS], {}, "two runs of this sweep would be named 'a_b-0.7'"),
        ([Axis("seed", ("0", "1"))], {}, "--target-flops is missing"),
    ],
)
def test_what_cannot_be_a_sweep_is_refused(axes: list[Axis], more: dict[str, object], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        planned(*axes, **more)
