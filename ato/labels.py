"""Labels of channels, and which of them go together.

Alongside an activation lives an int64 tensor of its shape: for every number the label of the channel it belongs to, 0
where it belongs to none. Labels that must be removed together are *tied*; labels that must stay are *pinned*.
"""

import numpy as np
import torch
from torch import Tensor


class Labels:
    """A union-find over labels. Label 0 stands for what is always there: tying a label to it pins that label."""

    def __init__(self) -> None:
        self._parent = [0]
        self._reasons: dict[int, str] = {}

    def fresh(self, count: int) -> Tensor:
        """`count` new labels, [count]."""
        start = len(self._parent)
        self._parent.extend(range(start, start + count))
        return torch.arange(start, start + count)

    def find(self, label: int) -> int:
        """The label that stands for everything tied to `label`; 0 for 0."""
        while self._parent[label] != label:
            self._parent[label] = self._parent[self._parent[label]]
            label = self._parent[label]
        return label

    def reason(self, label: int) -> str | None:
        """Why the label is pinned; None if it is not."""
        return self._reasons.get(self.find(label))

    def tie(self, one: Tensor, other: Tensor, reason: str) -> None:
        """Tie labels place by place (the tensors broadcast); `reason` pins a label that meets a 0."""
        shape = np.broadcast_shapes(one.shape, other.shape)
        one, other = _thin(one.expand(shape), other.expand(shape))
        differ = one != other
        for first, second in set(zip(one[differ].tolist(), other[differ].tolist(), strict=True)):
            self._join(first, second, reason)

    def _join(self, one: int, other: int, reason: str) -> None:
        if not (one and other):
            self._pin(one or other, reason)
            return
        first, second = sorted((self.find(one), self.find(other)))
        self._parent[second] = first
        if first != second and second in self._reasons:
            self._reasons.setdefault(first, self._reasons.pop(second))

    def pin(self, labels: Tensor, reason: str) -> None:
        """Keep these labels for good; the first reason given for a label is the one that is reported."""
        (thin,) = _thin(labels)
        for label in np.unique(thin.numpy()).tolist():
            if label:
                self._pin(label, reason)

    def _pin(self, label: int, reason: str) -> None:
        self._reasons.setdefault(self.find(label), reason)

    def varying(self, labels: Tensor) -> list[int]:
        """The dimensions along which labels differ that are not tied to each other."""
        dims = _varying(labels)
        return dims if len(dims) < 2 else _varying(self._standing(labels))

    def _standing(self, labels: Tensor) -> Tensor:
        unique, inverse = np.unique(labels.numpy(), return_inverse=True)
        return torch.tensor([self.find(label) for label in unique.tolist()])[torch.from_numpy(inverse)]


def _thin(*labels: Tensor) -> list[Tensor]:
    """The tensors without the dimensions along which each of them is merely expanded."""
    for dim in range(labels[0].dim()):
        if all(tensor.stride(dim) == 0 for tensor in labels):
            labels = tuple(tensor.narrow(dim, 0, 1) for tensor in labels)
    return list(labels)


def _varying(labels: Tensor) -> list[int]:
    def varies(dim: int) -> bool:
        return labels.stride(dim) != 0 and bool((labels != labels.narrow(dim, 0, 1)).any())

    return [dim for dim in range(labels.dim()) if labels.shape[dim] > 1 and varies(dim)]
