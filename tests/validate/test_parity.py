"""Parity passes for the same network and notices each way in which it may be another one."""

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from atopipe.validate.parity import ROUNDING_LIMIT, SUMMED_UP, TOLERANCE, ParityError, max_difference, measure_parity
from atopipe.validate.session import CPU, Providers, open_session


def test_the_same_network_has_parity_everywhere(models, net, images, as_function, as_exact) -> None:
    parity = measure_parity(as_function(net), models[8], images, exact=as_exact(net))
    places = {(case.provider, case.images, case.optimisation, case.batch) for case in parity.cases}
    assert places == {
        (CPU, kind, level, size) for kind in ("real", "random") for level in ("NONE", "ALL") for size in (1, 2, 7, 20)
    }
    assert parity.broken == ()
    assert 0 < parity.max_rel_diff < 1e-5
    assert 0 < parity.float64_rel_diff < 1e-5
    assert 0 < parity.rounding_ratio < ROUNDING_LIMIT
    assert parity.agreement == 1.0
    assert set(parity.to_json()) == {"cases", "tolerance", "skipped", *SUMMED_UP}


def test_difference_and_scale_are_those_of_an_independent_computation(
    models, net, images, as_function, as_exact
) -> None:
    wanted, got = as_function(net)(images), open_session(models[8]).run(images)
    parity = measure_parity(as_function(net), models[8], images, exact=as_exact(net), batch_sizes=[20])
    (case,) = [case for case in parity.cases if (case.images, case.optimisation) == ("real", "ALL")]
    assert case.max_abs_diff == pytest.approx(np.abs(wanted - got).max())
    true = as_exact(net)(images)
    assert case.float64_diff == np.abs(true - got).max()
    assert case.rounding == max(np.abs(true - wanted).max(), 2.0**-23 * np.abs(true).max())
    assert case.scale == pytest.approx(true.std())


def one_weight(net: nn.Sequential) -> None:
    net[0].weight[0, 1, 0, 0] += 0.01


def variance(net: nn.Sequential) -> None:
    net[1].running_var *= 1.01


def mean(net: nn.Sequential) -> None:
    net[1].running_mean[0] += 0.01


def swapped_channels(net: nn.Sequential) -> None:
    net[7].weight[:, [0, 1]] = net[7].weight[:, [1, 0]].clone()


@pytest.mark.parametrize("damage", [one_weight, variance, mean, swapped_channels])
def test_a_damaged_network_is_found_out(
    damage: Callable[[nn.Sequential], None], models, net, images, as_function, as_exact
) -> None:
    with torch.no_grad():
        damage(net)
    assert measure_parity(as_function(net), models[8], images, exact=as_exact(net)).max_rel_diff > TOLERANCE


def test_a_difference_at_one_batch_size_only_is_found_out(models, net, images, as_function, as_exact) -> None:
    def broken(batch: np.ndarray) -> np.ndarray:
        return as_function(net)(batch) * (1.01 if len(batch) == 7 else 1.0)

    parity = measure_parity(broken, models[8], images, exact=as_exact(net))
    assert parity.max_rel_diff > TOLERANCE
    assert {case.batch for case in parity.cases if case.max_rel_diff > TOLERANCE} == {parity.worst.batch} == {7}


def test_a_logit_that_is_not_finite_fails(models, net, images, as_exact) -> None:
    def broken(batch: np.ndarray) -> np.ndarray:
        return np.full((len(batch), 4), np.nan, np.float32)

    with pytest.raises(ParityError, match=r"^torch gives a logit that is not a finite number at batch 1 \(real images"):
        measure_parity(broken, models[8], images, exact=as_exact(net))
    with pytest.raises(ParityError, match=r"^ONNX Runtime gives a logit that is not a finite number here$"):
        max_difference(np.ones((1, 2), np.float32), np.array([[1, np.inf]], np.float32), "here")


def test_shapes_are_not_broadcast(models, images) -> None:
    def broken(batch: np.ndarray) -> np.ndarray:
        return np.arange(len(batch), dtype=np.float32)[:, None] + np.ones((1, 1), np.float32)

    message = (
        r"^ONNX Runtime gives logits of shape \[1, 4\], torch \[1, 1\], at batch 1 \(real images, optimisation NONE\)$"
    )
    with pytest.raises(ParityError, match=message):
        measure_parity(broken, models[8], images, exact=broken)


def test_constant_logits_prove_nothing(models, net, images, as_function, as_exact) -> None:
    with torch.no_grad():
        net[7].weight.zero_()
        net[7].bias.zero_()
    with pytest.raises(
        ParityError, match=r"^the network gives the same logit for everything on real images, so that agreement"
    ):
        measure_parity(as_function(net), models[8], images, exact=as_exact(net))


def test_what_is_too_small_for_the_tolerance_is_too_large_for_rounding(
    models, net, images, as_function, as_exact
) -> None:
    with torch.no_grad():
        net[0].weight[0, 1, 0, 0] *= 1.005
    parity = measure_parity(as_function(net), models[8], images, exact=as_exact(net))
    assert parity.max_rel_diff < TOLERANCE
    assert parity.rounding_ratio > ROUNDING_LIMIT
    assert parity.broken


def test_two_that_agree_in_float32_are_still_held_against_float64(models, net, images, as_function, as_exact) -> None:
    single = as_function(copy.deepcopy(net))
    with torch.no_grad():
        one_weight(net)
    parity = measure_parity(single, models[8], images, exact=as_exact(net))
    assert parity.max_rel_diff < TOLERANCE < parity.float64_rel_diff
    assert parity.broken


def test_a_provider_that_is_skipped_is_recorded_with_its_reason(models, net, images, as_function, as_exact) -> None:
    providers = Providers((CPU,), {"OtherExecutionProvider": "it has no device"})
    parity = measure_parity(as_function(net), models[8], images, exact=as_exact(net), providers=providers)
    assert {case.provider for case in parity.cases} == {CPU}
    assert parity.to_json()["skipped"] == {"OtherExecutionProvider": "it has no device"}
