"""`--keep` and `--only`: which widths the user wants pruned."""

import pytest
import torch
from torch import nn

from atopipe.ato.discovery.find import find_groups
from atopipe.ato.groups import Groups
from atopipe.pipeline.models.layer_filter import choose
from atopipe.pipeline.system.errors import UsageError


def block(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU())


@pytest.fixture
def model() -> nn.Module:
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 5))
    return nn.Sequential(block(3, 8), block(8, 10), block(10, 12), head)


@pytest.fixture
def groups(model: nn.Module) -> Groups:
    return find_groups(model, torch.zeros(1, 3, 8, 8), torch.Generator().manual_seed(0))


def chosen(groups: Groups, model: nn.Module, keep: tuple[str, ...] = (), only: tuple[str, ...] = ()) -> list[str]:
    left = choose(groups, model, keep=keep, only=only)
    assert {u.name for u in left.unprunable} | {s.name for s in left.sets} == {"0.0", "1.0", "2.0", "3.2"}
    return sorted(s.name for s in left.sets)


def test_patterns_select_and_protect_and_everything_is_told(model: nn.Module, groups: Groups) -> None:
    assert chosen(groups, model) == ["0.0", "1.0", "2.0"]
    assert chosen(groups, model, keep=("0.*",)) == ["1.0", "2.0"]
    assert chosen(groups, model, only=("0.*", "2.1")) == ["0.0", "2.0"], "a norm layer stands for its width"
    assert chosen(groups, model, keep=("1.0",), only=("[12].*",)) == ["2.0"]


def test_what_is_left_out_has_its_reason(model: nn.Module, groups: Groups) -> None:
    left = choose(groups, model, keep=("0.*",), only=("[01].*",))
    reasons = {u.name: u.reason for u in left.unprunable}
    assert (reasons["0.0"], reasons["2.0"]) == ("--keep '0.*'", "no layer of it is named by --only")


def test_a_pattern_without_a_layer_is_refused(model: nn.Module, groups: Groups) -> None:
    with pytest.raises(UsageError) as caught:
        choose(groups, model, keep=("layer9.*",), only=())
    assert str(caught.value) == ("--keep 'layer9.*' matches no layer of the network: 'atopipe inspect' shows the names")
    with pytest.raises(UsageError, match="leave nothing to prune: choose fewer or other patterns"):
        choose(groups, model, keep=("*",), only=())
