"""Where the images of a split are: in memory, or on disk and decoded ahead of their use."""

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from atopipe.pipeline.data.decoding import read_pixels
from atopipe.pipeline.data.preprocessing import BILINEAR, Pixels, Size
from atopipe.pipeline.system.machine import available_processors

AHEAD = 2  # batches that are decoded while another one is used


class ImageStore(Protocol):
    """Where the images of a split are."""

    def on(self, device: torch.device) -> "ImageStore":
        """The same images, kept on the device if they fit there."""
        ...

    def read(self, plan: Sequence[Tensor], device: torch.device) -> Iterator[Tensor]:
        """For each tensor of indices in `plan`, in order, those images: uint8 [B, C, H, W] on the device."""
        ...


@dataclass(frozen=True, eq=False)
class InMemory:
    """Decoded images, uint8 [N, C, H, W], on any device."""

    pixels: Tensor

    def on(self, device: torch.device) -> "InMemory":
        """A copy on the device if it takes at most a quarter of what is free there; it lives as long as the result."""
        return InMemory(self.pixels.to(device)) if _fits(self.pixels, device) else self

    def read(self, plan: Sequence[Tensor], device: torch.device) -> Iterator[Tensor]:
        """The images at those indices; see `ImageStore`."""
        for indices in plan:  # a copy that blocked would make every step wait for the one before it
            yield self.pixels[indices.to(self.pixels.device, non_blocking=True)].to(device)


def _fits(pixels: Tensor, device: torch.device) -> bool:
    return device.type != "cuda" or pixels.nbytes <= torch.cuda.mem_get_info(device)[0] / 4


@dataclass(frozen=True, eq=False)
class OnDisk:
    """Image files, decoded by one thread for each processor, `AHEAD` batches before they are used.

    Threads, because Pillow releases Python's lock while it decodes and scales. Worker processes would pass every batch
    through /dev/shm, which is 64 MB in a container, and each could be killed or interrupted on its own.
    """

    paths: Sequence[Path]
    resize: Size
    crop: Size
    interpolation: str = BILINEAR

    def on(self, device: torch.device) -> "OnDisk":
        """The files as they are."""
        return self

    def read(self, plan: Sequence[Tensor], device: torch.device) -> Iterator[Tensor]:
        """The images at those indices; see `ImageStore`. Raises DataError for the first that cannot be read."""
        pool = ThreadPoolExecutor(available_processors())
        batches = (self._begin(pool, indices.tolist(), pinned=device.type == "cuda") for indices in plan)
        try:
            ahead = deque(islice(batches, AHEAD))
            while ahead:
                pixels, decoded = ahead.popleft()
                for image in decoded:
                    image.result()
                ahead.extend(islice(batches, 1))
                yield pixels.to(device, non_blocking=True)
        finally:
            pool.shutdown(cancel_futures=True)

    def _begin(
        self, pool: ThreadPoolExecutor, indices: Sequence[int], *, pinned: bool
    ) -> tuple[Tensor, list[Future[None]]]:
        """A batch that fills itself: its pixels, and what has to end before they are all there."""
        pixels = torch.empty((len(indices), 3, *self.crop), dtype=torch.uint8, pin_memory=pinned)
        rows = pixels.numpy()
        return pixels, [pool.submit(self._decode, index, row) for index, row in zip(indices, rows, strict=True)]

    def _decode(self, index: int, row: Pixels) -> None:
        row[:] = read_pixels(self.paths[index], self.resize, self.crop, self.interpolation)


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
