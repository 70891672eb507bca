"""What part of a training step waits for its images: from memory, and from disk decoded by threads.

    python benchmarks/loader.py [--batch-size 32] [--threads 2]

resnet18 trains for an epoch each on images that the script makes: 2,000 of 32x32 pixels held in memory, and 500 JPEG
files of a photograph's size that are decoded to 224x224. `waiting_share` is the part of the step's time in which the
training waits for its images. The seconds until the first batch come once per epoch and are stated apart.

`images_per_s` is what the loader alone gives, without training: the limit beside a GPU, which leaves the processors
to it.
"""

import tempfile
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import click
import numpy as np
import torch
from PIL import Image
from record import append, environment
from torch import Tensor

from atopipe.ato.execution import PRECISIONS, Execution, best_memory_format
from atopipe.ato.training.dense import DenseTrainer
from atopipe.pipeline.config.load import load_config
from atopipe.pipeline.data.augment import Augmentation, usual_augmentation
from atopipe.pipeline.data.dataset import Batches, Split
from atopipe.pipeline.data.photographs.encoded import EncodedFiles
from atopipe.pipeline.data.photographs.pack import Part, make_pack
from atopipe.pipeline.data.photographs.shards import read_index
from atopipe.pipeline.data.photographs.store import Photographs
from atopipe.pipeline.data.photographs.windows import RandomWindows
from atopipe.pipeline.data.preprocessing import Preprocessing, Size, resize_for
from atopipe.pipeline.data.stores import ImageStore, InMemory
from atopipe.pipeline.models.build import build_model

CLASSES = 10
PHOTOGRAPH = (500, 375)


@dataclass
class Clock:
    """Wall seconds, added up over the times that it ran."""

    wall: float = 0.0

    def __enter__(self) -> None:
        self.wall -= time.perf_counter()

    def __exit__(self, *error: object) -> None:
        self.wall += time.perf_counter()


def split_of(store: ImageStore, count: int, size: Size, augmentation: Augmentation | RandomWindows) -> Split:
    """`count` images of that size, with labels in turn and the augmentation that training gives them."""
    preprocessing = Preprocessing(size, resize_for(size), (0.5,) * 3, (0.25,) * 3)
    return Split(store, torch.arange(count) % CLASSES, preprocessing, augmentation)


def in_memory(count: int, side: int) -> Split:
    """Noise: what memory gives out does not depend on what it shows."""
    pixels = torch.randint(256, (count, 3, side, side), dtype=torch.uint8)
    return split_of(InMemory(pixels), count, (side, side), usual_augmentation((side, side)))


def on_disk(folder: Path, count: int, side: int) -> Split:
    """JPEG files with coarse and fine structure, some 100 kB each as photographs of this size have."""
    numbers, size = np.random.default_rng(0), (side, side)
    paths = tuple(folder / f"{index}.jpg" for index in range(count))
    for path in paths:
        coarse = Image.fromarray(numbers.integers(0, 256, (24, 32, 3), dtype=np.uint8)).resize(PHOTOGRAPH)
        fine = numbers.normal(0, 12, (*reversed(PHOTOGRAPH), 3))
        Image.fromarray((np.asarray(coarse) + fine).clip(0, 255).astype(np.uint8)).save(path, quality=85)
    return split_of(Photographs(EncodedFiles(paths), resize_for(size), size), count, size, RandomWindows(size))


def packed(folder: Path, count: int, side: int) -> Split:
    """The same files in a packed copy whose shorter side is 256, as `webdataset:` reads it."""
    split = on_disk(folder, count, side)
    paths = [folder / f"{index}.jpg" for index in range(count)]
    part = Part("train", paths, split.labels.tolist(), scaled=True)
    make_pack(folder / "packed", "", [part], 256, lambda done, total: None)
    shards = [folder / "packed" / "train-000000.tar"]
    store = Photographs(read_index(shards).encoded(shards), resize_for((side, side)), (side, side))
    return split_of(store, count, (side, side), RandomWindows((side, side)))


def measure(trainer: DenseTrainer, batches: Batches, device: torch.device) -> dict[str, float]:
    """One epoch."""
    first, loading, training = Clock(), Clock(), Clock()
    with first:
        rest = iter(batches)
        batch: tuple[Tensor, Tensor] | None = next(rest)
    while batch is not None:
        with training:
            trainer.step(*batch)
            finish(device)
        with loading:
            batch = next(rest, None)
            finish(device)
    return {
        "waiting_share": loading.wall / (loading.wall + training.wall),
        "step_s": (loading.wall + training.wall) / len(batches),
        "first_batch_s": first.wall,
    }


def rate(batches: Batches, device: torch.device) -> float:
    """Images per second of an epoch that nobody trains with."""
    start = time.perf_counter()
    count = sum(len(labels) for _, labels in batches)
    finish(device)
    return count / (time.perf_counter() - start)


def finish(device: torch.device) -> None:
    """Wait until the device has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def new_trainer(side: int, device: torch.device) -> DenseTrainer:
    """resnet18 as the default recipe trains it."""
    torch.manual_seed(0)
    model, recipe = build_model("resnet18", CLASSES), load_config(None, {"model.name": "x", "target_flops": 1}).recipe
    execution = Execution(
        PRECISIONS[recipe.precision](device), best_memory_format(model, torch.zeros(1, 3, side, side))
    )
    return DenseTrainer(model.to(device), recipe, 10_000, torch.Generator().manual_seed(0), execution)


@click.command()
@click.option("--batch-size", default=32)
@click.option("--threads", default=2)
def main(batch_size: int, threads: int) -> None:
    torch.set_num_threads(threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    shares = {}
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        kinds = {
            "memory": partial(in_memory, 2000, 32),
            "disk": partial(on_disk, place, 500, 224),
            "packed": partial(packed, place, 500, 224),
        }
        for name, make in kinds.items():
            split = make()
            batches = split.batches(batch_size, device=device, generator=torch.Generator().manual_seed(0))
            alone = {"images_per_s": rate(batches, device)}
            row = alone | measure(new_trainer(split.preprocessing.size[0], device), batches, device)
            append("loader", {"images": name, "batch_size": batch_size, "threads": threads, **row, **environment()})
            print(f"{name:<6}", "  ".join(f"{key} {value:.4g}" for key, value in row.items()), flush=True)
            shares[name] = f"{row['waiting_share']:.1%}"
    print("waiting share: " + ", ".join(f"{name} {share}" for name, share in shares.items()))


if __name__ == "__main__":
    main()
