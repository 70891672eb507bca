"""Prove groups before anything is built on them: zeroed and removed must be the same, whatever the network computes.

A dependency graph treats what it does not know as element-wise; channel shuffles, activations with f(0) != 0 or a
softmax over channels would silently give a wrong network. So every group set is removed once, on random weights, in
float64, while the network evaluates and while it trains.
"""

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from atopipe.ato.discovery.capture import Call, capture_calls, tensors
from atopipe.ato.execution import is_out_of_memory
from atopipe.ato.groups import Groups, GroupSet
from atopipe.ato.removal.shrink import TOLERANCE, relative_difference
from atopipe.ato.removal.slices import scale_groups
from atopipe.ato.removal.structure import cut_model, structure_of

SMALLEST_SIDE = 32
LAST_BITS = 2.0**-50  # relative: a few units in the last place of float64
ROUNDINGS = 100  # each layer rounds as its input does: so many times what one rounding of the input changes
MOST_ROUNDING = 1e-6  # a difference beyond it is never rounding
NOISE_PERIOD = 2**20 + 7  # a prime, so that no two rows of a matrix are alike


@dataclass(frozen=True)
class Finding:
    """What came of a removal: the `defect`, None where there is none.

    `random_in_training`: outputs in training mode are random, and whether removal changes them could not be told.
    """

    defect: str | None
    random_in_training: bool = False


class Probe:
    """A network of random weights in float64, on which the removal of group sets is tested.

    `model` is not modified. Where it runs on smaller images than `example` [1, C, H, W] it is tested on those, which
    takes a fraction of the time and shows the same channels. Dropout layers are off; torch's global generator is used.
    `random_in_training`: some removal could not be judged in training mode.
    """

    def __init__(self, model: nn.Module, example: Tensor, generator: torch.Generator) -> None:
        self.generator = generator
        self.model = random_network(model, generator)
        self.images = self._calibrate(example)
        self.random_in_training = False

    def failures(self, proven: Sequence[GroupSet], candidates: Sequence[GroupSet]) -> dict[str, str]:
        """Why candidates fail, by name; all others can be removed together with what is `proven` already.

        All at once, if that works; else each alone, within the smallest module that holds its layers; and where sets
        that pass alone fail together, they are added by halves.
        """
        if not candidates or self._joint_defect([*proven, *candidates]) is None:
            return {}
        failures = self._alone(candidates)
        self._add(list(proven), [s for s in candidates if s.name not in failures], failures)
        return failures

    def _alone(self, candidates: Sequence[GroupSet]) -> dict[str, str]:
        with torch.no_grad():
            _, calls = capture_calls(self.model, Call((self.images,), {}))
        defects: dict[str, str] = {}
        for candidate in candidates:
            scope = _enclosing(candidate, calls)
            module = self.model.get_submodule(scope)
            if defect := self._defect(module, [_within(scope, candidate)], calls[scope]):
                defects[candidate.name] = defect
        return defects

    def _add(self, accepted: list[GroupSet], more: Sequence[GroupSet], failures: dict[str, str]) -> None:
        """Accept what passes together with what is accepted; note why the rest fails."""
        defect = self._joint_defect([*accepted, *more]) if more else None
        if defect is None:
            accepted += more
        elif len(more) == 1:
            failures[more[0].name] = defect
        else:
            self._add(accepted, more[: len(more) // 2], failures)
            self._add(accepted, more[len(more) // 2 :], failures)

    def _joint_defect(self, sets: Sequence[GroupSet]) -> str | None:
        return self._defect(self.model, sets, Call((self.images,), {}))

    def _defect(self, module: nn.Module, sets: Sequence[GroupSet], call: Call) -> str | None:
        finding = try_removal(module, sets, call, self.generator)
        self.random_in_training |= finding.random_in_training
        return finding.defect

    @torch.no_grad()
    def _calibrate(self, example: Tensor) -> Tensor:
        """Images for the probe; norm layers get running statistics that fit them, so that no signal dies on the way."""
        norms = [module for module in self.model.modules() if isinstance(module, _BatchNorm)]
        for norm in norms:
            norm.momentum = 1.0
        for height, width in _sides(*example.shape[2:]):
            shape = (2 if norms else 1, example.shape[1], height, width)  # two: the fewest that have a variance
            images = torch.randn(shape, generator=self.generator, dtype=torch.float64)
            if (height, width) == example.shape[2:]:
                break
            if _runs(self.model, images):
                return images
        if norms:
            self.model.train()
            self.model(images)
        self.model.eval()
        return images


def random_network(model: nn.Module, generator: torch.Generator) -> nn.Module:
    """A float64 copy on the CPU with random weights and without dropout.

    Matrices are N(0, 2 / fan-in), vectors U(0.5, 1.5): no gain, shift or head is zero, as initial ones often are.
    """
    normal = torch.randn(NOISE_PERIOD, generator=generator, dtype=torch.float64)
    uniform = 0.5 + torch.rand(NOISE_PERIOD, generator=generator, dtype=torch.float64)

    def noise(shape: torch.Size) -> Tensor:
        period, scale = (normal, math.sqrt(2 / max(shape[1:].numel(), 1))) if len(shape) > 1 else (uniform, 1.0)
        start = int(torch.randint(max(NOISE_PERIOD - shape.numel(), 1), (), generator=generator))
        whole = period.repeat(-(-shape.numel() // NOISE_PERIOD)) if shape.numel() > NOISE_PERIOD else period
        return (whole[start : start + shape.numel()] * scale).view(shape)

    new: dict[int, Any] = {id(p): nn.Parameter(noise(p.shape)) for p in model.parameters() if p.is_floating_point()}
    twin = copy.deepcopy(model, new).cpu().double()
    for module in twin.modules():
        if isinstance(module, _DropoutNd):
            module.p = 0.0
    return twin.eval()


@torch.no_grad()
def try_removal(module: nn.Module, sets: Sequence[GroupSet], call: Call, generator: torch.Generator) -> Finding:
    """What comes of it when a random part of each set is zeroed and removed from `module`."""
    groups = Groups(tuple(sets), ())
    mask = torch.cat([_random_mask(s.size, generator) for s in sets])
    try:
        zeroed = _sharing_copy(module, own=frozenset().union(*(s.layers for s in sets)))
        scale_groups(zeroed, groups, mask)
        small = cut_model(_sharing_copy(module, own=frozenset()), structure_of(module, groups, mask))
        differences = [_difference(zeroed, small, call, training=training) for training in (False, True)]
    except Exception as error:  # whatever the network's code raises
        if is_out_of_memory(error):
            raise
        first_line = next(iter(str(error).splitlines()), type(error).__name__)
        return Finding(f"the network does not run without some of them ({first_line})")
    largest = max(difference for difference in differences if difference is not None)
    if largest > TOLERANCE:
        return Finding(
            f"zeroing some of them does not make them vanish: removing them changes outputs by {largest:.0e}"
        )
    return Finding(None, random_in_training=None in differences)


def _difference(zeroed: nn.Module, small: nn.Module, call: Call, *, training: bool) -> float | None:
    """The largest relative difference of any output; 0 where it is rounding.

    Rounding is what is of the size by which outputs change with the last bits of the inputs: a norm layer that sees
    two values only, as on tiny images in training, enlarges their difference to one. None where outputs in training
    mode differ, but are random even without dropout layers: functional dropout draws for fewer channels.
    """
    wanted = _outputs(zeroed, call, training=training, seed=0)
    got = _outputs(small, call, training=training, seed=0)
    difference = max(map(relative_difference, got, wanted), default=0.0)
    if TOLERANCE < difference <= min(MOST_ROUNDING, ROUNDINGS * _sensitivity(zeroed, call, wanted, training=training)):
        return 0.0
    if difference > TOLERANCE and training:
        again = _outputs(zeroed, call, training=training, seed=1)
        return difference if all(map(torch.equal, again, wanted)) else None
    return difference


def _sensitivity(module: nn.Module, call: Call, wanted: Sequence[Tensor], *, training: bool) -> float:
    """The largest relative change of any output when the last bits of every input are others."""

    def rounded(tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            return tensor.clone()
        return tensor + LAST_BITS * tensor * (torch.arange(tensor.numel()) % 7 - 3).view(tensor.shape)

    changed = _outputs(module, call, training=training, seed=0, change=rounded)
    return max(map(relative_difference, changed, wanted), default=0.0)


def _outputs(
    module: nn.Module, call: Call, *, training: bool, seed: int, change: Callable[[Tensor], Tensor] = Tensor.clone
) -> list[Tensor]:
    torch.manual_seed(seed)  # what drops whole images' branches draws as often in both networks
    module.train(training)  # by itself: not every module that overrides it returns itself
    return [t for t in tensors(call.run(module, change)) if t.is_floating_point()]


def _sharing_copy(module: nn.Module, own: frozenset[str]) -> nn.Module:
    """A copy that has its own buffers and its own parameters in the layers `own`; the rest is the same memory."""
    layers = {name: layer for name, layer in module.named_modules() if name not in own}
    shared: dict[int, Any] = {id(p): p for layer in layers.values() for p in layer.parameters(recurse=False)}
    return copy.deepcopy(module, shared)


def _enclosing(group_set: GroupSet, calls: Mapping[str, Call]) -> str:
    """The innermost module that holds all layers of the set and was called."""
    names = [member.module for member in group_set.members]
    scope = names[0].rpartition(".")[0]
    while scope and not (scope in calls and all(name.startswith(f"{scope}.") for name in names)):
        scope = scope.rpartition(".")[0]
    return scope


def _within(scope: str, group_set: GroupSet) -> GroupSet:
    """The set with its layers named as they are within `scope`."""
    prefix = f"{scope}." if scope else ""
    members = tuple(replace(m, module=m.module.removeprefix(prefix)) for m in group_set.members)
    return replace(group_set, members=members)


def _sides(height: int, width: int) -> Iterator[tuple[int, int]]:
    """Smaller sizes to try first, in multiples of 32 as most networks want them, and at last the whole."""
    for divisor in (4, 2):
        small_height, small_width = (max(SMALLEST_SIDE, round(side / divisor / 32) * 32) for side in (height, width))
        if small_height < height and small_width < width:
            yield small_height, small_width
    yield height, width


def _runs(model: nn.Module, images: Tensor) -> bool:
    try:
        for training in (True, False):
            model.train(training)
            model(images)
    except Exception as error:  # whatever the network's code raises
        if is_out_of_memory(error):
            raise
        return False
    return True


def _random_mask(size: int, generator: torch.Generator) -> Tensor:
    """Removes a random number of random groups: with one and the same number, unequal widths would meet unnoticed.

    Two or more groups stay where there are three: one channel alone would broadcast.
    """
    removed = int(torch.randint(1, size - 1, (), generator=generator)) if size > 2 else size - 1
    return (torch.randperm(size, generator=generator) >= removed).double()
