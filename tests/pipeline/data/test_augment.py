"""Augmentation against slow, independent computations: every window tried, every dot followed."""

import math
from functools import partial

import pytest
import torch
from torch import Tensor

from atopipe.pipeline.data.augment import (
    Augmentation,
    center_crop,
    pad_crop_flip,
    resized_crop_flip,
    shift_rotate,
    unchanged,
    usual_augmentation,
)

AUGMENTATIONS = {
    "unchanged": unchanged,
    "pad_crop_flip": partial(pad_crop_flip, padding=4),
    "shift_rotate": partial(shift_rotate, shift=2 / 32, degrees=10.0),
    "resized_crop_flip": partial(resized_crop_flip, size=(16, 16)),
}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise(batch: int = 6, height: int = 16, width: int = 16) -> Tensor:
    return torch.randint(1, 256, (batch, 3, height, width), generator=seeded(), dtype=torch.uint8)


def mirrored(images: Tensor) -> Tensor:
    return images.flip(-1)


@pytest.mark.parametrize("augment", AUGMENTATIONS.values(), ids=AUGMENTATIONS)
def test_same_generator_state_gives_same_images_and_leaves_the_input_alone(augment: Augmentation) -> None:
    images = noise()
    before = images.clone()
    assert torch.equal(augment(images, seeded(3)), augment(images, seeded(3)))
    assert torch.equal(images, before)
    assert augment(images, seeded()).shape == images.shape


@pytest.mark.parametrize("name", sorted(AUGMENTATIONS.keys() - {"unchanged"}))
def test_every_image_of_a_batch_is_changed_in_its_own_way(name: str) -> None:
    changed = AUGMENTATIONS[name](noise(1).expand(16, -1, -1, -1), seeded())
    assert len({image.numpy().tobytes() for image in changed}) == 16


def test_pad_crop_flip_is_a_window_of_the_padded_image_and_every_window_occurs() -> None:
    padding, size = 1, 4
    image = noise(1, size, size)
    padded = torch.zeros(3, size + 2 * padding, size + 2 * padding, dtype=torch.uint8)
    padded[:, padding:-padding, padding:-padding] = image[0]
    windows = {
        (top, left, flip): (mirrored if flip else lambda x: x)(padded[:, top : top + size, left : left + size]).clone()
        for top in range(3)
        for left in range(3)
        for flip in (False, True)
    }
    seen = [
        next(key for key, window in windows.items() if torch.equal(result, window))
        for result in pad_crop_flip(image.expand(1800, -1, -1, -1), seeded(), padding=padding)
    ]
    counts = {key: seen.count(key) for key in windows}
    assert min(counts.values()) > 60, "each of the 18 windows is expected 100 times"


def test_shift_rotate_without_shift_or_rotation_is_the_identity() -> None:
    images = noise()
    assert torch.allclose(shift_rotate(images, seeded(), shift=0, degrees=0), images.float(), atol=0.05)


def centre_of_mass(images: Tensor) -> Tensor:
    """[B, 2]: x and y from the middle of the image, in pixels."""
    height, width = images.shape[2:]
    weights = images[:, 0] / images[:, 0].sum((1, 2), keepdim=True)
    x = (weights * (torch.arange(width) - (width - 1) / 2)).sum((1, 2))
    y = (weights * (torch.arange(height) - (height - 1) / 2)[:, None]).sum((1, 2))
    return torch.stack((x, y), 1)


def test_rotation_keeps_distances_and_stays_within_its_degrees_on_oblong_images() -> None:
    images = torch.zeros(200, 1, 33, 65)
    images[:, :, 14:19, 48:53] = 255  # around 18 pixels right of the middle
    x, y = centre_of_mass(shift_rotate(images, seeded(), shift=0, degrees=20)).unbind(1)
    angle = torch.rad2deg(torch.atan2(y, x))
    assert torch.allclose(x.hypot(y), torch.tensor(18.0), atol=0.3)
    assert angle.abs().max() < 20.5
    assert angle.min() < -15
    assert angle.max() > 15


def test_shift_moves_by_at_most_its_share_of_each_side() -> None:
    images = torch.zeros(200, 1, 20, 40)
    images[:, :, 9:11, 19:21] = 255
    moved = centre_of_mass(shift_rotate(images, seeded(), shift=0.1, degrees=0)).abs()
    assert (moved.amax(0) <= torch.tensor([4.05, 2.05])).all()
    assert (moved.amax(0) > torch.tensor([3.5, 1.7])).all()


def test_resized_crop_of_everything_is_the_image_or_its_mirror() -> None:
    images = noise(40)
    results = resized_crop_flip(images, seeded(), size=(16, 16), area=(1, 1), ratio=(1, 1))
    flips = [torch.allclose(r, mirrored(i).float(), atol=0.05) for r, i in zip(results, images, strict=True)]
    kept = [torch.allclose(r, i.float(), atol=0.05) for r, i in zip(results, images, strict=True)]
    assert all(a != b for a, b in zip(flips, kept, strict=True))
    assert 8 < sum(flips) < 32


def test_resized_crop_draws_area_and_ratio_from_their_ranges_inside_the_image() -> None:
    side = 64
    ramp = torch.arange(side, dtype=torch.float32) + 100
    across = resized_crop_flip(ramp.expand(300, 1, side, side), seeded(), size=(32, 32), area=(0.25, 0.5))
    down = resized_crop_flip(ramp[:, None].expand(300, 1, side, side), seeded(), size=(32, 32), area=(0.25, 0.5))
    middle = slice(4, 28)  # away from the border, where a ramp is cut off
    width = (across[:, 0, 0, middle].diff().mean(1) * 32 / side).abs()
    height = down[:, 0, middle, 0].diff(dim=1).mean(1) * 32 / side
    area, ratio = width * height, width / height
    assert 0.249 < area.min() < 0.27
    assert 0.48 < area.max() < 0.501
    assert 0.745 < ratio.min() < 0.8
    assert 1.28 < ratio.max() < 1.34
    assert across.min() >= 100, "nothing from outside the image"
    assert across.max() <= 100 + side - 1
    assert across[:, 0, 0, 0].diff().abs().max() > 10, "windows differ in place"


@pytest.mark.parametrize("side", [32, 128])
def test_a_least_crop_keeps_so_much_of_the_area(side: int) -> None:
    ramp = torch.arange(side, dtype=torch.float32)
    across, down = torch.meshgrid(ramp, ramp, indexing="xy")
    images = torch.stack((across, down)).expand(64, -1, -1, -1)
    crops = usual_augmentation((side, side), 0.7)(images, seeded())
    width, height = (channel.flatten(1).max(1).values - channel.flatten(1).min(1).values for channel in crops.unbind(1))
    kept = (width + 1) * (height + 1) / side**2
    assert 0.68 < kept.min() < 0.8
    assert kept.max() > 0.9


@pytest.mark.parametrize(("have", "want"), [((8, 8), (8, 8)), ((10, 9), (6, 5)), ((256, 256), (224, 224))])
def test_center_crop_leaves_equal_margins(have: tuple[int, int], want: tuple[int, int]) -> None:
    image = torch.arange(math.prod(have)).view(1, 1, *have)
    cropped = center_crop(image, want)
    assert cropped.shape == (1, 1, *want)
    assert cropped[0, 0, 0, 0] + cropped[0, 0, -1, -1] == image.max(), "first and last pixel mirror each other"
