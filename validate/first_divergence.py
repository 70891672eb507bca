"""Where two runs of a network part: the first operation whose output differs although nothing it reads does."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from atopipe.validate.session import Optimisation, ProviderError, SessionError, open_session

Tensor = NDArray[Any]
Cut = Callable[[str], bytes]
"""The name of a tensor -> the model that ends there; KeyError where it has no such tensor."""


class Operation(Protocol):
    """One node of a graph: the names of the tensors it reads and writes."""

    @property
    def inputs(self) -> tuple[str, ...]: ...
    @property
    def outputs(self) -> tuple[str, ...]: ...


Op = TypeVar("Op", bound=Operation)


@dataclass(frozen=True)
class Run:
    """A model that can be cut off anywhere, and how ONNX Runtime runs it."""

    cut: Cut
    provider: str
    optimisation: Optimisation

    def tensor(self, name: str, images: NDArray[np.float32]) -> Tensor | None:
        """What the model computes there for these images; None where it has no such tensor or cannot compute it."""
        try:
            session = open_session(self.cut(name), provider=self.provider, optimisation=self.optimisation)
            return session.run(images)
        except (KeyError, ProviderError, SessionError):
            return None


def first_parting(operations: Sequence[Op], parts: Callable[[str], bool]) -> Op | None:
    """Return an operation one of whose outputs parts while none of its inputs does; None if the last one's do not.

    Args:
        operations: the graph in topological order; the last one writes its output.
        parts: whether a tensor differs; asked about few of them, since each answer costs two runs of the model.
    """
    known: dict[str, bool] = {}

    def is_apart(operation: Op) -> bool:
        for name in operation.outputs:
            if name not in known:
                known[name] = parts(name)
        return any(known[name] for name in operation.outputs)

    if not is_apart(operations[-1]):
        return None
    suspects = list(operations)
    while True:
        found = _boundary(suspects, is_apart)
        suspects = _ancestors(found, suspects)
        blamed = [one for one in suspects if set(one.outputs) & set(found.inputs) and is_apart(one)]
        if not blamed:
            return found
        suspects = suspects[: suspects.index(blamed[0]) + 1]


def difference(wanted: Tensor | None, got: Tensor | None) -> float:
    """Return the largest difference over the largest wanted value; infinite where the two cannot be compared."""
    if wanted is None or got is None or wanted.shape != got.shape:
        return np.inf
    if np.array_equal(wanted, got, equal_nan=wanted.dtype.kind == "f"):
        return 0.0
    apart, largest = np.abs(wanted.astype(np.float64) - got).max(), np.abs(wanted).max()
    return float(apart / largest) if np.isfinite(apart) and largest > 0 else np.inf


def _boundary(suspects: Sequence[Op], is_apart: Callable[[Op], bool]) -> Op:
    """Bisect for one that is apart and whose predecessor in the list is not; the last one is known to be apart."""
    good, bad = -1, len(suspects) - 1
    while bad - good > 1:
        middle = (good + bad) // 2
        good, bad = (good, middle) if is_apart(suspects[middle]) else (middle, bad)
    return suspects[bad]


def _ancestors(operation: Op, operations: Sequence[Op]) -> list[Op]:
    """Those that the operation depends on, in the same order."""
    wanted, found = set(operation.inputs), []
    for one in reversed(operations):
        if wanted & set(one.outputs):
            wanted |= set(one.inputs)
            found.append(one)
    return found[::-1]
