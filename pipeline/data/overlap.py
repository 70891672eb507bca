"""Images that are in a data set more often than once, found by digests of their pixels or files."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from atopipe.pipeline.data.augment import center_crop
from atopipe.pipeline.data.dataset import Data
from atopipe.pipeline.data.photographs.store import Photographs
from atopipe.pipeline.data.preprocessing import CHUNK, Size
from atopipe.pipeline.data.stores import ImageStore, InMemory
from atopipe.pipeline.system.files import sha256_bytes
from atopipe.pipeline.system.machine import available_processors

LOOKED_AT = 2000  # images of each part at most, evenly spread
Digest = Callable[[int], str]


class Overlap(NamedTuple):
    """`shared` of `validation` images that were looked at are training images as well.

    `contradicted` of `training` images that were looked at are in the training set under another label as well.
    """

    shared: int
    validation: int
    contradicted: int
    training: int


@dataclass(frozen=True)
class _Pictures:
    """For each image a key [N] that equal images share, which takes little time, and its digest."""

    keys: NDArray[np.int64]
    digest: Digest


def overlap(data: Data) -> Overlap:
    """Images that are in the data set more often than once.

    Only images with the same sum of pixels, or encoded in as many bytes, are read for their digests. A store of another
    kind is not looked at.
    """
    stores, size = (data.train.images, data.val.images), data.preprocessing.size
    decoded = all(isinstance(store, InMemory) for store in stores)
    train, val = (_pixels(store, size) if decoded else _encoded(store) for store in stores)
    if train is None or val is None:
        return Overlap(0, 0, 0, 0)
    of_val, of_train = _some(len(data.val)), _some(len(data.train))
    shared = _common(train, val, of_val)
    return Overlap(shared, len(of_val), _contradicted(train, data.train.labels.numpy(), of_train), len(of_train))


def _some(count: int) -> NDArray[np.int64]:
    return np.linspace(0, count - 1, min(LOOKED_AT, count)).round().astype(np.int64)


def _pixels(store: ImageStore, size: Size) -> _Pictures | None:
    if not isinstance(store, InMemory):
        return None
    return _Pictures(_sums(store.pixels, size), partial(_digest, store.pixels, size))


def _encoded(store: ImageStore) -> _Pictures | None:
    """Compared as they were encoded, where that is known."""
    encoded = store.encoded if isinstance(store, Photographs | InMemory) else None
    return None if encoded is None else _Pictures(encoded.sizes(), lambda index: sha256_bytes(encoded.read(index)))


def _common(train: _Pictures, val: _Pictures, chosen: NDArray[np.int64]) -> int:
    """How many of the chosen validation images have a key and a digest that a training image has."""
    twins = np.intersect1d(train.keys, val.keys[chosen])
    with ThreadPoolExecutor(available_processors()) as pool:
        seen = set(pool.map(train.digest, np.flatnonzero(np.isin(train.keys, twins)).tolist()))
        return sum(digest in seen for digest in pool.map(val.digest, chosen[np.isin(val.keys[chosen], twins)].tolist()))


def _contradicted(train: _Pictures, labels: NDArray[np.int64], chosen: NDArray[np.int64]) -> int:
    """How many of the chosen training images are there under another label as well."""
    keys, counts = np.unique(train.keys, return_counts=True)
    twins = np.intersect1d(keys[counts > 1], train.keys[chosen])
    among = np.flatnonzero(np.isin(train.keys, twins))
    with ThreadPoolExecutor(available_processors()) as pool:
        digests = dict(zip(among.tolist(), pool.map(train.digest, among.tolist()), strict=True))
    named: dict[str, set[int]] = {}
    for index, digest in digests.items():
        named.setdefault(digest, set()).add(int(labels[index]))
    return sum(len(named[digests[index]]) > 1 for index in chosen.tolist() if index in digests)


def _sums(pixels: Tensor, size: Size) -> NDArray[np.int64]:
    parts = (pixels[start : start + CHUNK] for start in range(0, len(pixels), CHUNK))
    sums = [center_crop(part, size).flatten(1).sum(1, dtype=torch.int64) for part in parts]
    return np.asarray(torch.cat(sums).numpy(), np.int64)


def _digest(pixels: Tensor, size: Size, index: int) -> str:
    image = center_crop(pixels[index : index + 1], size)
    return sha256_bytes(np.ascontiguousarray(image.numpy()).tobytes())
