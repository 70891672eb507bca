"""A run between two steps, as tensors and plain values: what must be saved to resume to the same result."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


def laid_out(value: Tensor, parameter: Tensor) -> Tensor:
    """`value` in the memory layout of a parameter of the same shape: fused optimisers walk through both in step."""
    return torch.empty_like(parameter, dtype=value.dtype).copy_(value)


@dataclass(frozen=True)
class Snapshot:
    """`tensors` by name, and `values` that JSON can hold."""

    tensors: Mapping[str, Tensor]
    values: Mapping[str, Any]

    def part(self, name: str) -> "Snapshot":
        """The part that `joined` stored under this name."""
        start = f"{name}."
        tensors = {key.removeprefix(start): tensor for key, tensor in self.tensors.items() if key.startswith(start)}
        return Snapshot(tensors, self.values.get(name, {}))


def joined(**parts: Snapshot) -> Snapshot:
    """Several snapshots in one, each under its name."""
    tensors = {f"{name}.{key}": tensor for name, part in parts.items() for key, tensor in part.tensors.items()}
    return Snapshot(tensors, {name: dict(part.values) for name, part in parts.items()})


def tensors_only(**tensors: Tensor) -> Snapshot:
    """A snapshot of single tensors."""
    return Snapshot(tensors, {})


def of_optimizer(optimizer: Optimizer) -> Snapshot:
    """The state of every parameter, by its number; what the groups are set to belongs to the recipe."""
    state: Mapping[int, Mapping[str, Tensor]] = optimizer.state_dict()["state"]
    return Snapshot({f"{number}.{key}": value for number, kept in state.items() for key, value in kept.items()}, {})


def restore_optimizer(optimizer: Optimizer, snapshot: Snapshot) -> None:
    """Give `optimizer`, made by the same recipe for parameters of the same shapes, the state of the snapshot."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in snapshot.tensors.items():
        number, _, key = name.partition(".")
        state.setdefault(int(number), {})[key] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    for parameter, kept in optimizer.state.items():
        kept.update({key: laid_out(v, parameter) for key, v in kept.items() if v.shape == parameter.shape})


def of_generators(generator: torch.Generator) -> Snapshot:
    """`generator`, and torch's global generators, from which dropout and the like draw."""
    tensors = {"own": generator.get_state(), "cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        tensors["cuda"] = torch.cuda.get_rng_state()
    return Snapshot(tensors, {})


def restore_generators(generator: torch.Generator, snapshot: Snapshot) -> None:
    """Restore the state of generators that `of_generators` saved."""
    generator.set_state(snapshot.tensors["own"])
    torch.set_rng_state(snapshot.tensors["cpu"])
    if "cuda" in snapshot.tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(snapshot.tensors["cuda"])
