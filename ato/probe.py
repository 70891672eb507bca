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
from atopipe.ato.shrink import TOLERANCE, noise_like, relative_difference, shrink
from atopipe.ato.slices import scale_groups


def find_groups(model: nn.Module, example: Tensor, generator: torch.Generator) -> Groups:
    """The groups of `model` whose removal is proven not to change what the rest computes; `model` is not modified.

    `example`: one image [1, C, H, W]. What fails is listed in `unprunable` with the reason. Raises GraphError when the
    network cannot be traced, NoGroupsError when nothing is left to prune.
    """
    groups = trace_groups(model, example)
    with torch.random.fork_rng(devices=[]):  # dropout draws from the global generator, which must not notice
        probe = _random_network(model, example, generator)
        failures = _failures(probe, groups.sets, generator, example)
    refused = tuple(Unprunable(s.name, s.size, failures[s.name]) for s in groups.sets if s.name in failures)
    proven = Groups(tuple(s for s in groups.sets if s.name not in failures), groups.unprunable + refused)
    if not proven.sets:
        reasons = "; ".join(f"{u.name}: {u.reason}" for u in proven.unprunable[:3]) or "it has no prunable layer"
        raise NoGroupsError(
            f"{type(model).__name__} has no channels that can be removed ({reasons}); choose another model"
        )
    return proven


def _failures(
    probe: nn.Module, sets: Sequence[GroupSet], generator: torch.Generator, example: Tensor
) -> dict[str, str]:
    """Set name -> what goes wrong; the sets that are left pass together, not only one by one."""
    images = torch.randn((2, *example.shape[1:]), generator=generator, dtype=torch.float64)
    joint = _defect(probe, sets, images, generator)
    if joint is None:
        return {}
    alone = {s.name: defect for s in sets if (defect := _defect(probe, [s], images, generator)) is not None}
    left = [s for s in sets if s.name not in alone]
    if _defect(probe, left, images, generator) is None:
        return alone
    return {s.name: alone.get(s.name, joint) for s in sets}


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
    """What goes wrong when some groups of each set are zeroed and removed; None when nothing does."""
    if not sets:
        return None
    groups = Groups(tuple(sets), ())
    mask = torch.cat([_random_mask(s.size, generator) for s in sets])
    zeroed = copy.deepcopy(probe)
    scale_groups(zeroed, groups, mask)
    try:
        small, _ = shrink(zeroed, groups, mask)
        difference = relative_difference(small(images), zeroed(images))
        small.train()(images)  # what runs in training only must fit, too
    except (RuntimeError, ValueError, IndexError) as error:
        return f"the network does not run without some of them ({error})"
    if difference > TOLERANCE:
        return f"zeroing some of them does not make them vanish: removing them changes the output by {difference:.0e}"
    return None


def _random_mask(size: int, generator: torch.Generator) -> Tensor:
    """Removes a random number of random groups: with one and the same number, unequal widths would meet unnoticed.

    Two or more groups stay where there are three: one channel alone would broadcast.
    """
    removed = int(torch.randint(1, size - 1, (), generator=generator)) if size > 2 else size - 1
    return (torch.randperm(size, generator=generator) >= removed).double()
