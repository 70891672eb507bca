"""How much a group matters, read off the weights: what a mask would be chosen by without a controller."""

import torch
from torch import Tensor, nn

from atopipe.ato import axes
from atopipe.ato.groups import Groups, GroupSet
from atopipe.ato.masking import group_norms


@torch.no_grad()
def norm_scales(model: nn.Module, groups: Groups) -> Tensor:
    """Sum of |scale| over the norm layers a group passes, [G]; the group's own norm in sets without norm layers."""
    fallback = groups.split(group_norms(model, groups))
    return torch.cat([_scales(model, s, norm) for s, norm in zip(groups.sets, fallback, strict=True)])


def _scales(model: nn.Module, group_set: GroupSet, fallback: Tensor) -> Tensor:
    total = torch.zeros_like(fallback)
    for member in group_set.members:
        module = model.get_submodule(member.module)
        if isinstance(module, axes.CHANNEL_NORMS):
            index, group = member.index.to(total.device), member.group.to(total.device)
            total.index_add_(0, group, module.weight.detach().abs()[index])
    return total if bool(total.any()) else fallback


def standardised(scores: Tensor, groups: Groups) -> Tensor:
    """Scores with mean 0 and deviation 1 within each set, [G]; 0 where a set's scores are all equal."""
    parts = [part - part.mean() for part in groups.split(scores)]
    return torch.cat([part / part.square().mean().sqrt().clamp(min=1e-12) for part in parts])
