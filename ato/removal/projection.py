"""Steps that move whole groups towards zero, as factors by which a group is scaled; pure functions of its norms."""

import torch
from torch import Tensor


def proximal_factor(norm: Tensor, step: Tensor) -> Tensor:
    """The group lasso's proximal step, g <- g * max(0, 1 - step / ||g||).

    The norm falls by exactly `step`, but not below zero.

    ATO, section 3.1 with step = learning rate * lambda. `norm`, `step`: [G], not negative; a zero group stays zero.
    """
    return torch.where(norm > step, 1 - step / norm.clamp(min=torch.finfo(norm.dtype).tiny), 0.0)


def half_space_factor(previous_norm: Tensor, inner: Tensor, epsilon: float) -> Tensor:
    """The half-space step (OTO, equation 8): 0 where <new, old> < epsilon * ||old||^2, else 1.

    `previous_norm`: ||old||, `inner`: <new, old>; both [G].
    """
    return (inner >= epsilon * previous_norm.square()).to(inner.dtype)


def decay_step(norm: Tensor, steps_left: int) -> Tensor:
    """The proximal step that, repeated `steps_left` times, ends at exactly zero: ||g|| / steps_left."""
    return norm / steps_left


def set_shares(removed: Tensor) -> Tensor:
    """The released code's weight of a set in the proximal step: its part of all groups being removed; both [sets]."""
    return removed / removed.sum().clamp(min=1)
