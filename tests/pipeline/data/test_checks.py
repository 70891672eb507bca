"""A data function may return `Data` with anything in it: what would train or deliver something else is refused."""

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from atopipe.pipeline.data.answer import remarks
from atopipe.pipeline.data.dataset import Data, Split
from atopipe.pipeline.data.load import load_data
from atopipe.pipeline.data.preprocessing import Preprocessing
from atopipe.pipeline.data.stores import ImageStore, InMemory
from atopipe.pipeline.system.errors import DataError

USUAL = Preprocessing((8, 8), (8, 8), (0.5,) * 3, (0.3,) * 3)
NAMES: Any = ("cat", "dog")


def noise(count: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(count).integers(0, 256, (count, 3, 8, 8), dtype=np.uint8))


def split(count: int, labels: int = 0, preprocessing: Preprocessing = USUAL, store: ImageStore | None = None) -> Split:
    return Split(store or InMemory(noise(count)), torch.arange(labels or count) % 2, preprocessing)


def data(names: Any = NAMES, preprocessing: Preprocessing = USUAL, **splits: Any) -> Data:
    parts = {"train": split(20, preprocessing=preprocessing), "val": split(60, preprocessing=preprocessing), **splits}
    return Data("own", "own", names, preprocessing, **parts)


@dataclass
class Store:
    """A store of the user's, whose reading `does` something."""

    does: Callable[[Tensor], Tensor]

    def on(self, device: torch.device) -> "Store":
        return self

    def read(self, plan: Sequence[Tensor], device: torch.device) -> Iterator[Tensor]:
        return (self.does(indices) for indices in plan)


def fails(indices: Tensor) -> Tensor:
    raise RuntimeError("the data base is away")


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Callable[[object], Data]:
    """`load_data` of a function that returns this."""

    def loaded(result: object) -> Data:
        module = ModuleType("of_a_user")
        vars(module)["data"] = lambda: result
        monkeypatch.setitem(sys.modules, "of_a_user", module)
        return load_data("of_a_user:data", seed=0)

    return loaded


BROKEN: dict[str, tuple[Data, str]] = {
    "mean of validation": (data(val=split(60, preprocessing=replace(USUAL, mean=(0.0,) * 3))), "another preprocessing"),
    "mean of the device": (replace(data(), preprocessing=replace(USUAL, mean=(0.0,) * 3)), "another preprocessing"),
    "size": (replace(data(), preprocessing=replace(USUAL, size=(4, 4))), "another preprocessing"),
    "no deviation": (data(preprocessing=replace(USUAL, std=(0.0, 1.0, 1.0))), "no std of 0"),
    "no number": (data(preprocessing=replace(USUAL, mean=(float("nan"), 0.0, 0.0))), "three finite numbers"),
    "one mean": (data(preprocessing=replace(USUAL, mean=(0.5,), std=(0.3,))), "three finite numbers"),
    "interpolation": (data(preprocessing=replace(USUAL, interpolation="magic")), "the interpolation 'magic'"),
    "fewer labels": (data(train=split(20, 10)), "20 for 10"),
    "more labels": (data(train=split(20, 40)), "cannot be read: IndexError"),
    "one image less": (data(train=split(20, store=Store(lambda indices: noise(len(indices) - 1)))), "19 for 20"),
    "a store that fails": (data(train=split(20, store=Store(fails))), "RuntimeError: the data base is away"),
    "a set of names": (data({"cat", "dog"}), "class names in a set"),
    "names in one text": (data("ab"), "class names in a str"),
    "no split": (data(val=None), "no Split"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_data_that_would_train_or_deliver_something_else_are_refused(kind: str, load: Callable[[object], Data]) -> None:
    result, words = BROKEN[kind]
    with pytest.raises(DataError, match=words):
        load(result)


def test_data_of_a_function_are_taken_as_they_are(load: Callable[[object], Data]) -> None:
    given = data(train=split(20, store=Store(lambda indices: noise(len(indices)))))
    assert load(given).train is given.train


@pytest.mark.parametrize("names", [("cat", "cat "), ("a cat", "a\u00a0cat")])
def test_names_that_differ_in_white_space_only_are_one(names: tuple[str, str], load: Callable[[object], Data]) -> None:
    with pytest.raises(DataError, match="two classes named"):
        load(data(names))


def test_members_of_an_enumeration_are_named_by_their_values(load: Callable[[object], Data]) -> None:
    class Animal(str, Enum):  # noqa: UP042 (whose text is not its value, unlike StrEnum's)
        CAT = "cat"
        DOG = "dog"

    assert load(data(list(Animal))).labels == ("cat", "dog")


def test_images_without_height_are_refused(load: Callable[[object], Data]) -> None:
    empty, numbers = np.zeros((4, 3, 0, 8), np.uint8), np.array([0, 1, 0, 1])
    with pytest.raises(DataError, match=r"uint8 \[4, 3, 0, 8\]"):
        load((empty, numbers, empty, numbers, NAMES))


@pytest.mark.parametrize("brightest", [1, 15])
def test_images_that_use_little_of_the_range_are_told(brightest: int) -> None:
    """Zeros and ones as uint8; 12 bits in a file of 16."""
    dark = Split(InMemory((noise(20) > 127).to(torch.uint8) * brightest), torch.arange(20) % 2, USUAL)
    (found,) = remarks(data(train=dark))
    assert found.startswith(f"no pixel of 20 training images looked at is brighter than {brightest} of 255: ")
