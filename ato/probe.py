"""Prove the groups of a network before anything is built on them.

Following the channels tells what goes together, not whether zero stays zero: an activation with f(0) != 0, a literal
size or a normalised weight would silently give a wrong network. So a random part of every set is zeroed and removed
once, on random weights, in float64, with running statistics and with those of the batch.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_leaves

from atopipe.ato import axes
from atopipe.ato.groups import GraphError, Groups, GroupSet, Member, NoGroupsError, Unprunable
from atopipe.ato.masking import scale_groups
from atopipe.ato.shrink import TOLERANCE, fill_with_noise, noise_like, relative_difference, shrink
from atopipe.ato.trace import explained, trace_groups

IMAGES = 3  # of which the norm layers take statistics
SIDES = (64, 128)  # pixels, tried in turn before the example's: larger images take longer and tell no more


def find_groups(model: nn.Module, example: Tensor, generator: torch.Generator) -> Groups:
    """The groups of `model` whose removal is proven not to change what the rest computes; `model` is not modified.

    `example`: one image [1, C, H, W]. What fails is listed in `unprunable` with the reason. Raises GraphError when the
    network does not run, NoGroupsError when nothing is left to prune.
    """
    network = _random_network(model, generator)
    count = IMAGES if _norms(network) else 1
    images = torch.randn((count, *example.shape[1:]), generator=generator, dtype=torch.float64)
    for side in SIDES:
        if side < min(example.shape[-2:]):
            with suppress(GraphError, NoGroupsError):  # the network may be made for larger images
                return _Probe(network, images[..., :side, :side], generator).groups()
    return _Probe(network, images, generator).groups()


@dataclass
class _Probe:
    """A random network, images [B, C, H, W] to compare outputs on, and what is known so far of its group sets."""

    network: nn.Module
    images: Tensor
    generator: torch.Generator
    accepted: tuple[GroupSet, ...] = ()
    refused: list[Unprunable] = field(default_factory=list)

    def groups(self) -> Groups:
        """The group sets that the trace suggests and the probe proves."""
        traced = trace_groups(self.network, self.images[:1])
        with explained(self.network, self.images):
            _fit_statistics(self.network, self.images)
        self._judge(traced.sets)
        unprunable = (*traced.unprunable, *self.refused)
        if not self.accepted:
            name = type(self.network).__name__
            reasons = "; ".join(f"{u.name}: {u.reason}" for u in unprunable[:3]) or "it has no prunable layer"
            raise NoGroupsError(f"{name} has no channels that can be removed ({reasons}); choose another model")
        return Groups(self.accepted, unprunable)

    def _judge(self, sets: tuple[GroupSet, ...]) -> None:
        """Accept the sets that can be removed together with those accepted before.

        Those seen to survive their zeroing are refused first; where that explains nothing, bisect.
        """
        if not sets:
            return
        defect, survivors = _try_without(self.network, (*self.accepted, *sets), self.images, self.generator)
        surviving = [s for s in sets if s.name in survivors]
        if defect is None:
            self.accepted += sets
        elif surviving:
            for group_set in surviving:
                self._refuse(group_set, survivors[group_set.name])
            self._judge(tuple(s for s in sets if s.name not in survivors))
        elif len(sets) == 1:
            self._refuse(sets[0], defect)
        else:
            self._judge(sets[: len(sets) // 2])
            self._judge(sets[len(sets) // 2 :])

    def _refuse(self, group_set: GroupSet, reason: str) -> None:
        self.refused.append(Unprunable(group_set.name, len(group_set.members[0].index), reason))


@torch.no_grad()
def _random_network(model: nn.Module, generator: torch.Generator) -> nn.Module:
    """A float64 copy with random weights on the CPU, in evaluation mode; the model's own weights are not copied."""
    noise = {
        id(p): nn.Parameter(noise_like(p.new_empty(p.shape, dtype=torch.float64, device="cpu"), generator))
        for p in model.parameters()
    }
    return copy.deepcopy(model, noise).cpu().double().eval()


@torch.no_grad()
def _fit_statistics(network: nn.Module, images: Tensor) -> None:
    """Give norm layers running statistics that fit the random weights, so that no signal dies on the way, for good."""
    norms = _norms(network)
    for norm in norms:
        norm.momentum = 1.0
    if norms:
        _use_batch_statistics(network)(images)
    for norm in norms:
        norm.momentum = 0.0
    network.eval()


def _norms(network: nn.Module) -> list[_BatchNorm]:
    return [module for module in network.modules() if isinstance(module, _BatchNorm)]


def _use_batch_statistics(network: nn.Module) -> nn.Module:
    """Norm layers as in training, all else as in evaluation: no dropout makes two runs differ."""
    for module in network.eval().modules():
        if isinstance(module, axes.CHANNEL_NORMS):
            module.train()
    return network


@torch.no_grad()
def _try_without(
    network: nn.Module, sets: Sequence[GroupSet], images: Tensor, generator: torch.Generator
) -> tuple[str | None, dict[str, str]]:
    """What goes wrong when a random part of each set is zeroed and removed, None when nothing does.

    And which sets are still read by a layer when they are zeroed, with that layer: name -> reason. What was zeroed is
    then filled with new noise: the network stays a random one.
    """
    groups = Groups(tuple(sets), ())
    mask = _random_mask(groups.sizes, generator)
    scale_groups(network, groups, mask)
    with _watch_readers(network, groups, mask) as survivors:
        wanted = network(images)
    try:
        small, _ = shrink(network, groups, mask)
        difference = relative_difference(small(images), wanted)
        if _norms(network):
            batchwise = [_use_batch_statistics(each)(images) for each in (small, network)]
            difference = max(difference, relative_difference(*batchwise))
        with torch.random.fork_rng(devices=[]):
            small.train()(images)  # what runs in training only must fit too
    except Exception as error:  # a network's own code may stumble over its new sizes in any way
        return f"the network does not run without some of them ({' '.join(str(error).split())[:200]})", survivors
    finally:
        network.eval()
        fill_with_noise(network, groups, mask < 0.5, generator)
    if difference <= TOLERANCE:
        return None, {}
    return f"removing some of them changes the output by {difference:.0e}, though they are zero", survivors


@contextmanager
def _watch_readers(network: nn.Module, groups: Groups, mask: Tensor) -> Iterator[dict[str, str]]:
    """Notes the sets of which a layer reads something else than zero where `mask` is 0: name -> reason."""
    survivors: dict[str, str] = {}

    def watch(group_set: GroupSet, member: Member, removed: Tensor) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
            (read, *_) = tree_leaves((args, kwargs))
            if read.index_select(axes.channel_dim(module) % read.dim(), removed).any():
                reason = f"zeroing some of them does not make them vanish: '{member.module}' still reads something"
                survivors.setdefault(group_set.name, reason)

        return hook

    with ExitStack() as hooks:
        for group_set, part in zip(groups.sets, groups.split(mask), strict=True):
            for member in group_set.members:
                if member.axis == "in":
                    layer = network.get_submodule(member.module)
                    hook = watch(group_set, member, member.index[part[member.group] < 0.5])
                    hooks.callback(layer.register_forward_pre_hook(hook, with_kwargs=True).remove)
        yield survivors


def _random_mask(sizes: list[int], generator: torch.Generator) -> Tensor:
    """Removes the first and the last group of each set and a random choice of the others, keeping 2 where it can.

    The first and the last, because what is cut off at a literal place (`x[:, :8]`, `x[:, -8:]`) would not notice others
    by chance. Of each set another number, because two widths that must agree shall not do so by chance. And 2 kept,
    because a single channel would be broadcast.
    """
    return torch.cat([_random_part(size, i, generator) for i, size in enumerate(sizes)])


def _random_part(size: int, number: int, generator: torch.Generator) -> Tensor:
    if size < 4:
        return torch.arange(size).bool().double()
    removed = 1 + torch.randperm(size - 2, generator=generator)[: number % (size - 3)]
    return torch.ones(size, dtype=torch.float64).index_fill(0, torch.cat([removed, torch.tensor([0, size - 1])]), 0)
