"""Images that are in both parts of a data set, found by digests of their pixels or files."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from atopipe.pipeline.data.augment import center_crop
from atopipe.pipeline.data.dataset import Data
from atopipe.pipeline.data.preprocessing import CHUNK, Size
from atopipe.pipeline.data.stores import InMemory, OnDisk
from atopipe.pipeline.system.files import sha256_bytes, sha256_file
from atopipe.pipeline.system.machine import available_processors

LOOKED_AT = 2000  # validation images at most, evenly spread
Digest = Callable[[int], str]


def overlap(data: Data) -> tuple[int, int]:
    """How many validation images are training images as well, and how many were looked at.

    Only images with the same sum of pixels, or files of the same size, are read for their digests. A store of another
    kind is not looked at.
    """
    train, val = data.train.images, data.val.images
    chosen = np.linspace(0, len(data.val) - 1, min(LOOKED_AT, len(data.val))).round().astype(np.int64)
    if isinstance(train, InMemory) and isinstance(val, InMemory):
        size = data.preprocessing.size
        keys = [_sums(store.pixels, size) for store in (train, val)]
        digests: list[Digest] = [partial(_digest, store.pixels, size) for store in (train, val)]
    elif isinstance(train, OnDisk) and isinstance(val, OnDisk):
        keys = [_sizes(store.paths) for store in (train, val)]
        digests = [partial(_digest_of_file, store.paths) for store in (train, val)]
    else:
        return 0, 0
    return _common(keys[0], keys[1][chosen], digests[0], lambda index: digests[1](int(chosen[index]))), len(chosen)


def _common(train: NDArray[np.int64], val: NDArray[np.int64], of_train: Digest, of_val: Digest) -> int:
    """How many of the validation images have a key and a digest that a training image has."""
    twins = np.intersect1d(train, val)
    with ThreadPoolExecutor(available_processors()) as pool:
        seen = set(pool.map(of_train, np.flatnonzero(np.isin(train, twins)).tolist()))
        return sum(digest in seen for digest in pool.map(of_val, np.flatnonzero(np.isin(val, twins)).tolist()))


def _sums(pixels: Tensor, size: Size) -> NDArray[np.int64]:
    parts = (pixels[start : start + CHUNK] for start in range(0, len(pixels), CHUNK))
    sums = [center_crop(part, size).flatten(1).sum(1, dtype=torch.int64) for part in parts]
    return np.asarray(torch.cat(sums).numpy(), np.int64)


def _digest(pixels: Tensor, size: Size, index: int) -> str:
    image = center_crop(pixels[index : index + 1], size)
    return sha256_bytes(np.ascontiguousarray(image.numpy()).tobytes())


def _digest_of_file(paths: Sequence[Path], index: int) -> str:
    return sha256_file(paths[index])


def _sizes(paths: Sequence[Path]) -> NDArray[np.int64]:
    with ThreadPoolExecutor(available_processors()) as pool:
        return np.fromiter(pool.map(lambda path: path.stat().st_size, paths), np.int64, len(paths))
