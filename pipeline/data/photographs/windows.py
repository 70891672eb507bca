"""Random windows of whole pictures: which part of one is scaled to the input, drawn before its size is known."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from atopipe.pipeline.data.preprocessing import Size

TRIES = 10
LEAST_SHARE = 0.08  # of a picture's area
NUMBERS = 2 * TRIES + 3  # that decide about a picture: area and ratio of each try, place, and mirroring


@dataclass(frozen=True)
class Window:
    """A part of a picture, in pixels, and whether it is mirrored."""

    top: int
    left: int
    height: int
    width: int
    mirrored: bool = False


@dataclass(frozen=True)
class RandomWindows:
    """Windows of a share `area` of the picture and of a ratio width / height in `ratio`, mirrored half of the time.

    As in Szegedy et al. 2015 and `torchvision.transforms.RandomResizedCrop`: ten tries, then the largest central
    window within `ratio`; log-uniform ratios. Each picture has its own numbers.
    """

    size: Size
    area: tuple[float, float] = (LEAST_SHARE, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)

    @classmethod
    def at_least(cls, share: float | None, size: Size) -> "RandomWindows":
        """Windows of so much of the area or more; None: of the usual share."""
        return cls(size, (LEAST_SHARE if share is None else share, 1.0))

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Uniform numbers in [0, 1), float64 [count, NUMBERS], on the CPU."""
        numbers = torch.rand(count, NUMBERS, generator=generator, device=generator.device, dtype=torch.float64)
        return numbers.cpu()

    def window(self, numbers: list[float], height: int, width: int) -> Window:
        """The part of a picture of this size that `numbers` [NUMBERS] decide on."""
        *tries, across, down, side = numbers
        for share, proportion in zip(tries[::2], tries[1::2], strict=True):
            pixels = height * width * (self.area[0] + (self.area[1] - self.area[0]) * share)
            ratio = math.exp(math.log(self.ratio[0]) + math.log(self.ratio[1] / self.ratio[0]) * proportion)
            wide, high = round(math.sqrt(pixels * ratio)), round(math.sqrt(pixels / ratio))
            if 0 < wide <= width and 0 < high <= height:
                top, left = int(down * (height - high + 1)), int(across * (width - wide + 1))
                return Window(top, left, high, wide, side < 0.5)
        return self._central(height, width, mirrored=side < 0.5)

    def _central(self, height: int, width: int, *, mirrored: bool) -> Window:
        wide = min(width, max(1, round(height * self.ratio[1])))
        high = min(height, max(1, round(width / self.ratio[0])))
        return Window((height - high) // 2, (width - wide) // 2, high, wide, mirrored)
