"""Parity passes for the same network and notices each way in which it may be another one."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from atopipe.validate.parity import TOLERANCE, ParityError, max_difference, measure_parity
from atopipe.validate.session import open_session


def test_the_same_network_has_parity_everywhere(models, net, images, as_function) -> None:
    parity = measure_parity(as_function(net), models[8], images)
    places = {(case.images, case.optimisation, case.batch) for case in parity.cases}
    assert places == {
        (kind, level, size) for kind in ("real", "random") for level in ("NONE", "ALL") for size in (1, 2, 7, 20)
    }
    assert 0 < parity.max_rel_diff < 1e-5
    assert parity.agreement == 1.0
    assert set(parity.to_json()) == {"cases", "tolerance", "max_abs_diff", "max_rel_diff", "scale", "agreement"}


def test_difference_and_scale_are_those_of_an_independent_computation(models, net, images, as_function) -> None:
    wanted, got = as_function(net)(images), open_session(models[8]).run(images)
    parity = measure_parity(as_function(net), models[8], images, batch_sizes=[20])
    (case,) = [case for case in parity.cases if (case.images, case.optimisation) == ("real", "ALL")]
    assert case.max_abs_diff == pytest.approx(np.abs(wanted - got).max())
    assert case.scale == pytest.approx(wanted.std(), rel=1e-5)


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
    damage: Callable[[nn.Sequential], None], models, net, images, as_function
) -> None:
    with torch.no_grad():
        damage(net)
    assert measure_parity(as_function(net), models[8], images).max_rel_diff > TOLERANCE


def test_a_difference_at_one_batch_size_only_is_found_out(models, net, images, as_function) -> None:
    def broken(batch: np.ndarray) -> np.ndarray:
        return as_function(net)(batch) * (1.01 if len(batch) == 7 else 1.0)

    parity = measure_parity(broken, models[8], images)
    assert parity.max_rel_diff > TOLERANCE
    assert {case.batch for case in parity.cases if case.max_rel_diff > TOLERANCE} == {parity.worst.batch} == {7}


def test_a_logit_that_is_not_finite_fails(models, images) -> None:
    def broken(batch: np.ndarray) -> np.ndarray:
        return np.full((len(batch), 4), np.nan, np.float32)

    with pytest.raises(ParityError, match=r"^torch gives a logit that is not a finite number at batch 1 \(real images"):
        measure_parity(broken, models[8], images)
    with pytest.raises(ParityError, match=r"^ONNX Runtime gives a logit that is not a finite number here$"):
        max_difference(np.ones((1, 2), np.float32), np.array([[1, np.inf]], np.float32), "here")


def test_shapes_are_not_broadcast(models, images) -> None:
    def broken(batch: np.ndarray) -> np.ndarray:
        return np.arange(len(batch), dtype=np.float32)[:, None] + np.ones((1, 1), np.float32)

    message = (
        r"^ONNX Runtime gives logits of shape \[1, 4\], torch \[1, 1\], at batch 1 \(real images, optimisation NONE\)$"
    )
    with pytest.raises(ParityError, match=message):
        measure_parity(broken, models[8], images)


def test_constant_logits_prove_nothing(models, net, images, as_function) -> None:
    with torch.no_grad():
        net[7].weight.zero_()
        net[7].bias.zero_()
    with pytest.raises(
        ParityError, match=r"^the network gives the same logit for everything on real images: agreement"
    ):
        measure_parity(as_function(net), models[8], images)
