"""Remove the masked groups for good, and prove that nothing else changed."""

import copy
import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from atopipe.ato.groups import Groups
from atopipe.ato.removal.slices import GroupSlices, group_norms
from atopipe.ato.removal.structure import Structure, cut_model, cut_tensors, spread, structure_of

TOLERANCE = 1e-10


class LossyError(Exception):
    """The shrunk network does not compute what the masked network computes, or the comparison could not tell."""


@dataclass(frozen=True)
class Lossless:
    """Evidence that shrinking changed nothing, in float64.

    `max_rel_diff`: largest difference between the masked and the shrunk network's outputs, relative to the largest
    output. `change`: the same when the removed groups are filled with noise instead, so that a network whose output
    ignores its input cannot pass.
    """

    max_rel_diff: float
    change: float


def shrink(model: nn.Module, groups: Groups, mask: Tensor) -> tuple[nn.Module, Structure]:
    """A new, small network without the groups whose mask is 0, and its structure; `model` is not modified."""
    structure = structure_of(model, groups, mask)
    return cut_model(copy.deepcopy(model), structure), structure


@torch.no_grad()
def expand(small: nn.Module, full: nn.Module, structure: Structure) -> None:
    """Write the small network's values into `full`, from which it was cut; the removed groups stay as they are."""
    cuts = cut_tensors(full, structure)
    narrow = {**dict(small.named_parameters()), **dict(small.named_buffers())}
    for name, tensor in (*full.named_parameters(), *full.named_buffers()):
        tensor.copy_(spread(narrow[name], tensor, cuts.get(name, {})))


@torch.no_grad()
def prove_lossless(
    model: nn.Module, groups: Groups, mask: Tensor, small: nn.Module, images: Tensor, generator: torch.Generator
) -> Lossless:
    """Compare `model`, whose masked groups are zero, with `small` in float64.

    On `images` [B, C, H, W] and as many random ones.
    Raises LossyError when a masked group is not exactly zero, when outputs differ by more than `TOLERANCE`, or when
    not even noise in the removed groups would change them.
    """
    full, small = copy.deepcopy(model).cpu().double().eval(), copy.deepcopy(small).cpu().double().eval()
    mask = mask.cpu().double()
    if group_norms(full, groups)[mask < 0.5].any():
        raise LossyError("some masked groups are not exactly zero; train through the decay phase before shrinking")
    batch = torch.cat([images.cpu().double(), torch.randn(images.shape, generator=generator, dtype=torch.float64)])
    wanted = full(batch)
    max_rel_diff = relative_difference(small(batch), wanted)
    fill_with_noise(full, groups, mask < 0.5, generator)
    change = relative_difference(full(batch), wanted)
    if not max_rel_diff <= TOLERANCE:
        raise LossyError(
            f"the shrunk network's outputs differ from the masked network's by {max_rel_diff:.1e} of their size"
        )
    if not change > 1e-6 and bool((mask < 0.5).any()):
        raise LossyError("the network's output does not depend on the removed groups at all, so nothing can be proven")
    return Lossless(max_rel_diff, change)


def relative_difference(outputs: Tensor, wanted: Tensor) -> float:
    """max |outputs - wanted| / max |wanted|; infinite where either is not finite."""
    difference = (outputs - wanted).abs().max() / wanted.abs().max()
    return float(difference) if bool(torch.isfinite(difference)) else float("inf")


@torch.no_grad()
def fill_with_noise(model: nn.Module, groups: Groups, chosen: Tensor, generator: torch.Generator) -> None:
    """Give the chosen groups (bool, [groups.total]) random values of the size of freshly initialised ones."""
    chosen = torch.cat([chosen, chosen.new_zeros(1)])
    for part in GroupSlices.of(model, groups).slices:
        rows = chosen[part.lookup].nonzero()[:, 0]
        noise = noise_like(part.parameter.index_select(part.dim, rows), generator)
        part.parameter.index_copy_(part.dim, rows, noise)


def noise_like(parameter: Tensor, generator: torch.Generator) -> Tensor:
    """Random values of the size of freshly initialised ones: N(0, 2 / fan-in) for matrices, U(0.5, 1.5) for vectors."""
    if parameter.dim() < 2:
        return 0.5 + torch.rand(parameter.shape, generator=generator, dtype=parameter.dtype)
    scale = math.sqrt(2 / max(parameter[:1].numel(), 1))
    return torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype) * scale
