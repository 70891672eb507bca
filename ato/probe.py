"""Prove the groups of the dependency graph before anything is built on them.

The graph treats what it does not know as element-wise; channel shuffles, activations with f(0) != 0 or a softmax over
channels would silently give a wrong network. So every group set is removed once, on random weights, in float64.
"""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from atopipe.ato.groups import Groups, GroupSet, NoGroupsError, Unprunable, trace_groups
from atopipe.ato.masking import scale_groups
from atopipe.ato.shrink import TOLERANCE, noise_like, relative_difference, shrink


def find_groups(model: nn.Module, example: Tensor, generator: torch.Generator) -> Groups:
    """The groups of `model` whose removal is proven not to change what the rest computes; `model` is not modified.

    `example`: one image [1, C, H, W]. What fails is listed in `unprunable` with the reason. Raises GraphError when the
    network cannot be traced, NoGroupsError when nothing is left to prune.
    """
    groups = trace_groups(model, example)
    probe = _random_network(model, example, generator)
    images = torch.randn((2, *example.shape[1:]), generator=generator, dtype=torch.float64)
    failures = (
        {}
        if _defect(probe, groups.sets, images, generator) is None
        else {
            group_set.name: defect
            for group_set in groups.sets
            if (defect := _defect(probe, [group_set], images, generator)) is not None
        }
    )
    refused = tuple(Unprunable(s.name, s.size, failures[s.name]) for s in groups.sets if s.name in failures)
    proven = Groups(tuple(s for s in groups.sets if s.name not in failures), groups.unprunable + refused)
    if not proven.sets:
        reasons = "; ".join(f"{u.name}: {u.reason}" for u in proven.unprunable[:3]) or "it has no prunable layer"
        raise NoGroupsError(
            f"{type(model).__name__} has no channels that can be removed ({reasons}); choose another model"
        )
    return proven


@torch.no_grad()
def _random_network(model: nn.Module, example: Tensor, generator: torch.Generator) -> nn.Module:
    """A float64 copy with random weights and running statistics that fit them, so that no signal dies on the way."""
    twin = copy.deepcopy(model).cpu().double()
    for parameter in twin.parameters():
        parameter.copy_(noise_like(parameter, generator))
    norms = [m for m in twin.modules() if isinstance(m, _BatchNorm)]
    for norm in norms:
        norm.momentum = 1.0
    twin.train()
    twin(torch.randn((8, *example.shape[1:]), generator=generator, dtype=torch.float64))
    return twin.eval()


@torch.no_grad()
def _defect(probe: nn.Module, sets: Sequence[GroupSet], images: Tensor, generator: torch.Generator) -> str | None:
    """What goes wrong when a random half of each set is zeroed and removed; None when nothing does."""
    groups = Groups(tuple(sets), ())
    mask = torch.cat([_half(s.size, generator) for s in sets]) if sets else torch.ones(0)
    zeroed = copy.deepcopy(probe)
    scale_groups(zeroed, groups, mask)
    try:
        difference = relative_difference(shrink(zeroed, groups, mask)[0](images), zeroed(images))
    except (RuntimeError, ValueError, IndexError) as error:
        return f"the network does not run without half of them ({error})"
    if difference > TOLERANCE:
        return f"zeroing half of them does not make them vanish: removing them changes the output by {difference:.0e}"
    return None


def _half(size: int, generator: torch.Generator) -> Tensor:
    """A mask that removes a random half, at least one group where there are two."""
    return (torch.randperm(size, generator=generator) >= size // 2).double()
