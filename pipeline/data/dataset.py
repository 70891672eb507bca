"""A data set as the other stages see it: two splits that hand out batches, from memory or from disk."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from atopipe.pipeline.data.augment import Augmentation, center_crop, unchanged
from atopipe.pipeline.data.photographs.windows import RandomWindows
from atopipe.pipeline.data.preprocessing import Preprocessing
from atopipe.pipeline.data.stores import ImageStore, Subset, WholePictures
from atopipe.pipeline.system.errors import DataError

APART = 2**20  # between the seeds of two processes: more than an epoch has batches; the CPU takes 32 bits of a seed
SMALLEST_BATCH = 2  # batch normalisation has no statistics of a single image


@dataclass(frozen=True)
class Share:
    """Which part of the images this process takes: number `index` of `count`."""

    index: int = 0
    count: int = 1

    def of_batch(self, batch: Tensor) -> Tensor:
        """An equal part of a training batch; the rest of fewer than `count` images is used by no process."""
        size = len(batch) // self.count
        return batch[self.index * size : (self.index + 1) * size]

    def of_all(self, images: Tensor) -> Tensor:
        """A part of a whole set, equal to within one image: every image is in the part of one process."""
        return images.tensor_split(self.count)[self.index]


WHOLE = Share()


class Batches(Protocol):
    """Batches (images float32 [B, C, H, W], labels int64 [B]) on a device; every iteration is one epoch."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]: ...


@dataclass(frozen=True, eq=False)
class Split:
    """Images, their labels int64 [N], and the augmentation that suits them; windows need a store of whole pictures."""

    images: ImageStore
    labels: Tensor
    preprocessing: Preprocessing
    augmentation: Augmentation | RandomWindows = unchanged

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: Tensor) -> "Split":
        """The images at `indices` [N], in their order."""
        return replace(self, images=Subset(self.images, indices), labels=self.labels[indices])

    def batches(
        self,
        batch_size: int,
        *,
        device: torch.device | str,
        generator: torch.Generator | None = None,
        augment: Augmentation | RandomWindows | None = None,
        share: Share = WHOLE,
    ) -> "SplitBatches":
        """Batches for training if a generator is given, for evaluation if not.

        Training: shuffled in each epoch and augmented by `augment` (default: the split's own augmentation; `unchanged`
        for none); a last batch of one image is left out. An epoch depends on the generator's state when its iteration
        starts and on nothing else. With a `share`, all processes need generators in the same state: they draw the same
        batches, each process takes its part of every batch and draws its own augmentations.
        Evaluation: every image of the process's share, in order and unchanged. `batch_size` is that of all processes.
        While the batches are held, a copy of the images stays on the device if it fits there.

        Raises DataError if a training batch is larger than the split.
        """
        if generator is not None and batch_size > len(self):
            have = f"the training set of {len(self):,} images"
            raise DataError(f"batch size {batch_size} is larger than {have}: lower --batch-size to {len(self)} or less")
        place = torch.device(device)
        here = replace(self, images=self.images.on(place))
        return SplitBatches(here, batch_size, place, generator, augment or self.augmentation, share)


@dataclass(frozen=True, eq=False)
class SplitBatches:
    """Batches of a split on a device; made by `Split.batches`."""

    split: Split
    batch_size: int
    device: torch.device
    generator: torch.Generator | None
    augment: Augmentation | RandomWindows
    share: Share

    def __len__(self) -> int:
        if self.generator is None:
            return len(self._evaluation_plan())
        whole, rest = divmod(len(self.split), self.batch_size)
        return whole + (rest >= SMALLEST_BATCH * self.share.count)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        if self.generator is None:
            return self._read(self._evaluation_plan(), None, 0)
        return self.resume(self.order(), 0)

    def order(self) -> Tensor:
        """What decides about the next epoch: the state of the generator."""
        return self._generator().get_state()

    def resume(self, order: Tensor, done: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The epoch that `order` decided about, without its first `done` batches; the generator moves on as ever."""
        generator = self._generator()
        generator.set_state(order)
        indices = _random_order(len(self.split), generator)
        seed = torch.randint(2**62, (), generator=generator, device=generator.device)
        plan = [self.share.of_batch(batch) for batch in torch.split(indices, self.batch_size)[: len(self)]]
        return self._read(plan[done:], int(seed), done)

    def _evaluation_plan(self) -> list[Tensor]:
        indices = self.share.of_all(torch.arange(len(self.split)))
        return list(torch.split(indices, max(1, self.batch_size // self.share.count))) if len(indices) else []

    def _generator(self) -> torch.Generator:
        if self.generator is None:
            raise TypeError("batches for evaluation have one order only")
        return self.generator

    def _read(self, plan: list[Tensor], seed: int | None, done: int) -> Iterator[tuple[Tensor, Tensor]]:
        if not plan:
            return
        labels = torch.split(self.split.labels[torch.cat(plan)].to(self.device), [len(batch) for batch in plan])
        normalise, store = self._normalisation(), self.split.images
        pixels = store.read(plan, self.device) if seed is None else self._changed(plan, seed + done)
        for position, images in enumerate(pixels):
            yield normalise(images), labels[position]

    def _changed(self, plan: list[Tensor], seed: int) -> Iterator[Tensor]:
        """The images of a plan, augmented; those of its first batch by the numbers of `seed`."""
        store, augment = self.split.images, self.augment
        if not isinstance(augment, RandomWindows):
            for position, images in enumerate(store.read(plan, self.device)):
                yield augment(images, self._noise(seed + position))
        elif isinstance(store, WholePictures):
            yield from store.windows(plan, augment, lambda position: self._noise(seed + position), self.device)
        else:
            raise TypeError(f"{type(store).__name__} has no whole pictures")

    def _noise(self, seed: int) -> torch.Generator:
        """Each batch has its own random numbers, so that none depends on how many the batches before it drew."""
        return torch.Generator(self.device).manual_seed(seed + self.share.index * APART)

    def _normalisation(self) -> Callable[[Tensor], Tensor]:
        """The same arithmetic as `preprocessing.preprocess`, its constants on the device."""
        settings = self.split.preprocessing
        mean, std = (torch.tensor(v, device=self.device)[:, None, None] for v in (settings.mean, settings.std))
        return lambda images: center_crop(images, settings.size).float().div(255).sub_(mean).div_(std)


@dataclass(frozen=True, eq=False)
class Data:
    """A data set: `description` is one line to announce it, `labels` are the names of the classes."""

    name: str
    description: str
    labels: tuple[str, ...]
    preprocessing: Preprocessing
    train: Split
    val: Split

    def normalised(self, mean: tuple[float, ...], std: tuple[float, ...]) -> "Data":
        """The same data, less `mean` and divided by `std`: of fractions of 255, per channel or one for all."""
        mean, std = (values * 3 if len(values) == 1 else values for values in (mean, std))

        def as_given(preprocessing: Preprocessing) -> Preprocessing:
            return replace(preprocessing, mean=mean, std=std)

        train, val = (replace(split, preprocessing=as_given(split.preprocessing)) for split in (self.train, self.val))
        return replace(self, preprocessing=as_given(self.preprocessing), train=train, val=val)

    def subset(self, train_count: int, generator: torch.Generator) -> "Data":
        """The same data with `train_count` of the training images, in the same shares of each class.

        Validation and preprocessing stay as they are. Raises DataError if there are not so many images.
        """
        if not SMALLEST_BATCH <= train_count <= len(self.train):
            limits = f"{self.name} has {len(self.train):,}, choose 2 or more of them"
            raise DataError(f"a subset of {train_count:,} training images is impossible: {limits}")
        train = self.train.take(stratified(self.train.labels, train_count, generator))
        return replace(self, description=f"{self.description}, {train_count:,} of them used for training", train=train)


def stratified(labels: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Indices, ascending, of `count` random items; each class has its share of them, to within one item.

    In random order, the r-th of a class of n stands at (r + 1/2) / n; those which stand first are taken, and where some
    of several classes stand together, those of a random class.
    """
    labels = _random_order(int(labels.max()) + 1, generator)[labels]
    order = _random_order(len(labels), generator)
    order = order[labels[order].argsort(stable=True)]  # class after class
    sizes = labels.bincount()
    own, starts = sizes[labels[order]], (sizes.cumsum(0) - sizes)[labels[order]]
    place = (torch.arange(len(labels)) - starts + 0.5).double() / own
    return order[place.argsort(stable=True)[:count]].sort().values


def _random_order(count: int, generator: torch.Generator) -> Tensor:
    return torch.randperm(count, generator=generator, device=generator.device).cpu()
