"""Removal, its structure file, and the proof that nothing else changed."""

import copy

import pytest
import torch
from torch import Tensor, nn

from atopipe.ato.discovery.find import find_groups
from atopipe.ato.groups import Groups
from atopipe.ato.removal.shrink import LossyError, expand, prove_lossless, shrink
from atopipe.ato.removal.slices import group_norms, scale_groups
from atopipe.ato.removal.structure import Structure, StructureError, cut_model


def half(groups: Groups) -> Tensor:
    return torch.cat([(torch.arange(n) < n / 2).float() for n in groups.sizes])


@pytest.fixture
def zeroed(network: nn.Module, example: Tensor, generator: torch.Generator) -> tuple[nn.Module, Groups, Tensor]:
    groups = find_groups(network, example, generator)
    scale_groups(network, groups, half(groups))
    return network, groups, half(groups)


def test_the_proof_passes_and_has_teeth(zeroed: tuple[nn.Module, Groups, Tensor], generator: torch.Generator) -> None:
    model, groups, mask = zeroed
    small, _ = shrink(model, groups, mask)
    proof = prove_lossless(model, groups, mask, small, torch.randn(2, 3, 8, 8), generator)
    assert proof.max_rel_diff <= 1e-12
    assert proof.change > 1e-3


def test_a_wrong_cut_is_found_out(zeroed: tuple[nn.Module, Groups, Tensor], generator: torch.Generator) -> None:
    model, groups, mask = zeroed
    small, _ = shrink(model, groups, mask)
    images = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        list(small.parameters())[-1][0] += 1e-6
    with pytest.raises(LossyError, match="the shrunk network's outputs differ from the masked network's by"):
        prove_lossless(model, groups, mask, small, images, generator)


def test_groups_that_are_only_almost_zero_are_refused(
    zeroed: tuple[nn.Module, Groups, Tensor], generator: torch.Generator
) -> None:
    model, groups, mask = zeroed
    small, _ = shrink(model, groups, mask)
    for parameter in model.parameters():
        parameter.data += 1e-12
    with pytest.raises(LossyError, match="some masked groups are not exactly zero"):
        prove_lossless(model, groups, mask, small, torch.randn(2, 3, 8, 8), generator)


def test_a_head_of_zeros_proves_nothing(zeroed: tuple[nn.Module, Groups, Tensor], generator: torch.Generator) -> None:
    model, groups, mask = zeroed
    nn.init.zeros_(model.get_submodule("head").weight)  # type: ignore[arg-type]
    small, _ = shrink(model, groups, mask)
    with pytest.raises(LossyError, match="does not depend on the removed groups at all"):
        prove_lossless(model, groups, mask, small, torch.randn(2, 3, 8, 8), generator)


def test_structure_and_weights_rebuild_the_network(zeroed: tuple[nn.Module, Groups, Tensor]) -> None:
    model, groups, mask = zeroed
    small, structure = shrink(model, groups, mask)
    fresh = copy.deepcopy(model)
    for parameter in fresh.parameters():
        nn.init.normal_(parameter)
    rebuilt = cut_model(fresh, Structure.from_json(structure.to_json()))
    rebuilt.load_state_dict(small.state_dict())
    images = torch.randn(2, 3, 8, 8)
    assert torch.equal(rebuilt(images), small(images))
    assert str(rebuilt) == str(small)


def test_expanding_puts_every_kept_weight_back_in_its_place(zeroed: tuple[nn.Module, Groups, Tensor]) -> None:
    model, groups, mask = zeroed
    small, structure = shrink(model, groups, mask)
    changed = copy.deepcopy(model)
    for parameter in small.parameters():
        parameter.data += 1.0
    expand(small, changed, structure)
    again, _ = shrink(changed, groups, mask)
    for name, tensor in small.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor)
    assert (group_norms(changed, groups)[mask < 0.5] == 0).all()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "this is not a structure file"),
        ('{"kept": {"nowhere": {"out": [0]}}}', "layer 'nowhere' of the structure is not in the network"),
        ('{"kept": {"stem.0": {"up": [0]}}}', "axis 'up' of layer 'stem.0' of the structure is not in the network"),
        ('{"kept": {"stem.0": {"out": [0, 16]}}}', "the kept channels of 'stem.0' .out. are not ascending indices"),
        ('{"kept": {"stem.0": {"out": [1, 1]}}}', "the kept channels of 'stem.0' .out. are not ascending indices"),
        ('{"kept": {"stem.0": {"out": []}}}', "the kept channels of 'stem.0' .out. are not ascending indices"),
    ],
)
def test_a_structure_that_does_not_fit_is_refused(residual: nn.Module, text: str, words: str) -> None:
    with pytest.raises(StructureError, match=words):
        cut_model(residual, Structure.from_json(text))
