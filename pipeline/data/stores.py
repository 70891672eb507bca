"""Where the images of a split are: in memory here, encoded in `photographs`; some of them, wherever they are."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from atopipe.pipeline.data.photographs.encoded import Encoded
from atopipe.pipeline.data.photographs.windows import RandomWindows

Noise = Callable[[int], torch.Generator]  # position in a plan -> the random numbers of that batch


class ImageStore(Protocol):
    """Where the images of a split are."""

    def on(self, device: torch.device) -> "ImageStore":
        """The same images, kept on the device if they fit there."""
        ...

    def read(self, plan: Sequence[Tensor], device: torch.device) -> Iterator[Tensor]:
        """For each tensor of indices in `plan`, in order, those images: uint8 [B, C, H, W] on the device."""
        ...


@runtime_checkable
class WholePictures(Protocol):
    """A store that has more of its pictures than it gives by `read`."""

    def windows(
        self, plan: Sequence[Tensor], random: RandomWindows, noise: Noise, device: torch.device
    ) -> Iterator[Tensor]:
        """Random windows of the images in `plan`: uint8 [B, 3, *random.size] on the device."""
        ...


@dataclass(frozen=True, eq=False)
class InMemory:
    """Decoded images, uint8 [N, C, H, W], on any device; `encoded`: what they were decoded from, if it is known."""

    pixels: Tensor
    encoded: Encoded | None = None

    def on(self, device: torch.device) -> "InMemory":
        """A copy on the device if it takes at most a quarter of what is free there; it lives as long as the result."""
        return InMemory(self.pixels.to(device), self.encoded) if _fits(self.pixels, device) else self

    def read(self, plan: Sequence[Tensor], device: torch.device) -> Iterator[Tensor]:
        """The images at those indices; see `ImageStore`."""
        for indices in plan:  # a copy that blocked would make every step wait for the one before it
            yield self.pixels[indices.to(self.pixels.device, non_blocking=True)].to(device)


def _fits(pixels: Tensor, device: torch.device) -> bool:
    return device.type != "cuda" or pixels.nbytes <= torch.cuda.mem_get_info(device)[0] / 4


@dataclass(frozen=True, eq=False)
class Subset:
    """Some images of a store, by their indices [N]."""

    images: ImageStore
    indices: Tensor

    def on(self, device: torch.device) -> "Subset":
        """All of the store's images, where that keeps them."""
        return Subset(self.images.on(device), self.indices)

    def read(self, plan: Sequence[Tensor], device: torch.device) -> Iterator[Tensor]:
        """The images at those indices; see `ImageStore`."""
        return self.images.read([self.indices[positions] for positions in plan], device)

    def windows(
        self, plan: Sequence[Tensor], random: RandomWindows, noise: Noise, device: torch.device
    ) -> Iterator[Tensor]:
        """Random windows of the images at those indices; see `WholePictures`."""
        if not isinstance(self.images, WholePictures):
            raise TypeError(f"{type(self.images).__name__} has no whole pictures")
        return self.images.windows([self.indices[positions] for positions in plan], random, noise, device)
