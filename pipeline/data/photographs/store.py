"""Photographs that stay encoded: what is needed of one is decoded when it is used, ahead of its use."""

import io
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from atopipe.pipeline.data.decoding import opened
from atopipe.pipeline.data.photographs.encoded import Encoded
from atopipe.pipeline.data.photographs.windows import RandomWindows, Window
from atopipe.pipeline.data.preprocessing import BILINEAR, Size, to_pixels, to_rgb, upright
from atopipe.pipeline.system.machine import available_processors

AHEAD = 2  # batches that are decoded while another one is used
JPEG = b"\xff\xd8\xff"
Fill = Callable[[int, Tensor], None]  # decodes the picture at a place of a batch into its row, uint8 [3, H, W]


@dataclass(frozen=True, eq=False)
class Photographs:
    """Encoded pictures, decoded by one thread for each processor, `AHEAD` batches before they are used.

    `read`: exactly the pixels that a deployed network sees (`to_pixels`); `windows`: random parts of whole pictures,
    by torchvision's decoder and torch's antialiased scaling, a fifth of the time. Threads, because all of that runs
    outside Python's lock: worker processes would start anew, and pass every batch through /dev/shm.
    """

    encoded: Encoded
    resize: Size
    crop: Size
    interpolation: str = BILINEAR

    def on(self, device: torch.device) -> "Photographs":
        """The pictures as they are."""
        return self

    def read(self, plan: Sequence[Tensor], device: torch.device) -> Iterator[Tensor]:
        """The central parts of the pictures in `plan`: uint8 [B, 3, *crop]; DataError for a broken one."""

        def fill_of(batch: int) -> Fill:
            indices = plan[batch].tolist()
            return lambda place, row: self._central(indices[place], row)

        return _ahead([len(indices) for indices in plan], self.crop, fill_of, device)

    def windows(
        self,
        plan: Sequence[Tensor],
        random: RandomWindows,
        noise: Callable[[int], torch.Generator],
        device: torch.device,
    ) -> Iterator[Tensor]:
        """Random windows of those pictures, scaled: uint8 [B, 3, *random.size]; `noise` is the generator of a batch."""

        def fill_of(batch: int) -> Fill:
            indices, numbers = plan[batch].tolist(), random.draw(len(plan[batch]), noise(batch)).tolist()
            return lambda place, row: self._window(indices[place], random, numbers[place], row)

        return _ahead([len(indices) for indices in plan], random.size, fill_of, device)

    def _central(self, index: int, row: Tensor) -> None:
        with opened(io.BytesIO(self.encoded.read(index)), self.encoded.name(index)) as image:
            row.copy_(torch.from_numpy(to_pixels(image, self.resize, self.crop, self.interpolation)))

    def _window(self, index: int, random: RandomWindows, numbers: list[float], row: Tensor) -> None:
        pixels = decoded(self.encoded.read(index), self.encoded.name(index))
        cut_out(pixels, random.window(numbers, *pixels.shape[1:]), row)


def decoded(content: bytes, name: str) -> Tensor:
    """A whole picture, upright, in RGB: uint8 [3, H, W]; DataError, which names it, where it cannot be read."""
    from torchvision.io import ImageReadMode, decode_jpeg

    if content.startswith(JPEG):
        try:
            stream = torch.frombuffer(bytearray(content), dtype=torch.uint8)
            pixels: Tensor = decode_jpeg(stream, mode=ImageReadMode.RGB, apply_exif_orientation=True)
            return pixels
        except RuntimeError:
            pass  # Pillow reads some that are damaged or rare, or says what is wrong
    with opened(io.BytesIO(content), name) as image:
        return torch.from_numpy(np.array(to_rgb(upright(image)))).permute(2, 0, 1)


def cut_out(pixels: Tensor, window: Window, row: Tensor) -> None:
    """Writes the window of `pixels` [3, H, W], scaled and mirrored as it says, into `row` [3, h, w]."""
    part = pixels[None, :, window.top : window.top + window.height, window.left : window.left + window.width]
    scaled = interpolate(part, row.shape[1:], mode="bilinear", antialias=True)[0]
    row.copy_(scaled.flip(2) if window.mirrored else scaled)


def _ahead(sizes: Sequence[int], size: Size, fill_of: Callable[[int], Fill], device: torch.device) -> Iterator[Tensor]:
    """Batches of so many pictures of `size`, each filled by several threads while those before it are used."""
    pool = ThreadPoolExecutor(available_processors())
    begun = (_begin(pool, count, size, fill_of(batch), device) for batch, count in enumerate(sizes))
    try:
        ahead = deque(islice(begun, AHEAD))
        while ahead:
            pixels, waiting = ahead.popleft()
            for one in waiting:
                one.result()
            ahead.extend(islice(begun, 1))
            yield pixels.to(device, non_blocking=True)
    finally:
        pool.shutdown(cancel_futures=True)


def _begin(
    pool: ThreadPoolExecutor, count: int, size: Size, fill: Fill, device: torch.device
) -> tuple[Tensor, list[Future[None]]]:
    """A batch that fills itself: its pixels, and what has to end before they are all there."""
    pixels = torch.empty((count, 3, *size), dtype=torch.uint8, pin_memory=device.type == "cuda")
    return pixels, [pool.submit(fill, place, row) for place, row in enumerate(pixels)]
