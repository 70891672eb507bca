"""Where the images of a split are: in memory, or on disk and decoded ahead of their use."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from atopipe.pipeline.data.decoding import read_pixels
from atopipe.pipeline.data.preprocessing import Size
from atopipe.pipeline.system.errors import DataError, MissingDataError
from atopipe.pipeline.system.machine import available_cores


class ImageStore(Protocol):
    """Where the images of a split are."""

    def read(self, plan: Sequence[Tensor], device: torch.device) -> Iterator[Tensor]:
        """For each tensor of indices in `plan`, in order, those images: uint8 [B, C, H, W] on the device."""
        ...


@dataclass(frozen=True, eq=False)
class InMemory:
    """Decoded images, uint8 [N, C, H, W]; copied to the device as a whole, once, where they fit."""

    pixels: Tensor
    copies: dict[torch.device, Tensor] = field(default_factory=dict)

    def read(self, plan: Sequence[Tensor], device: torch.device) -> Iterator[Tensor]:
        if device not in self.copies:
            self.copies[device] = self.pixels.to(device) if _fits(self.pixels, device) else self.pixels
        pixels = self.copies[device]
        for indices in plan:  # a copy that blocked would make every step wait for the one before it
            yield pixels[indices.to(pixels.device, non_blocking=True)].to(device)


def _fits(pixels: Tensor, device: torch.device) -> bool:
    return device.type != "cuda" or pixels.nbytes <= torch.cuda.mem_get_info(device)[0] / 4


@dataclass(frozen=True)
class OnDisk(Dataset[Tensor | DataError]):
    """Image files, decoded ahead of their use by worker processes, at most one per core."""

    paths: tuple[Path, ...]
    resize: Size
    crop: Size

    def __getitem__(self, index: int) -> Tensor | DataError:
        try:
            return torch.from_numpy(read_pixels(self.paths[index], self.resize, self.crop))
        except DataError as error:
            return error  # a worker that raises would wrap the sentence in its traceback

    def read(self, plan: Sequence[Tensor], device: torch.device) -> Iterator[Tensor]:
        loader: DataLoader[Tensor | DataError] = DataLoader(
            self,
            batch_sampler=[indices.tolist() for indices in plan],
            num_workers=min(available_cores(), len(plan)),
            collate_fn=_stack,
            pin_memory=device.type == "cuda",
            generator=torch.Generator(),  # or it would draw from the global one
        )
        for batch in _unless_killed(loader):
            if isinstance(batch, DataError):
                raise batch
            yield batch.to(device, non_blocking=True)


@dataclass(frozen=True, eq=False)
class Chosen:
    """Some images of a store, by their indices [N]."""

    images: ImageStore
    indices: Tensor

    def read(self, plan: Sequence[Tensor], device: torch.device) -> Iterator[Tensor]:
        return self.images.read([self.indices[positions] for positions in plan], device)


def _unless_killed(batches: Iterable[Tensor | DataError]) -> Iterator[Tensor | DataError]:
    """The batches; MissingDataError where a process that reads them is killed, which torch tells as a RuntimeError."""
    try:
        yield from batches
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        remedy = "free some, or lower --batch-size, and run again to go on"
        raise MissingDataError(
            f"a process that reads images was killed, most likely for want of memory: {remedy}"
        ) from error


def _stack(images: Sequence[Tensor | DataError]) -> Tensor | DataError:
    errors = [image for image in images if isinstance(image, DataError)]
    return errors[0] if errors else torch.stack([image for image in images if isinstance(image, Tensor)])
