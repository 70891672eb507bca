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
from atopipe.pipeline.data.checks import check_class_names
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


UNSEEN = (0x200B, 0xAD, 0x34F, 0x61C, 0x115F, 0x180E, 0x2060, 0x3164, 0xFEFF, 0xFE00, 0xFFA0, 0xE0041, 0xE0100, 0x1D173)
BROKEN_TEXT = (0xFFFE, 0xFDD0, 0x2028, 0x7F, 0xD800)


@pytest.mark.parametrize("character", [*map(chr, (*UNSEEN, *BROKEN_TEXT))], ids=ascii)
def test_class_names_with_what_nobody_sees_are_refused(character: str) -> None:
    with pytest.raises(DataError) as caught:
        check_class_names("data 'own'", ("cat", f"d{character}og"))
    code = f"U+{ord(character):04X}"
    name = f"d{character}og"
    expected = f"data 'own' has the class name {name!a} with the invisible character {code}: rename the class"
    assert str(caught.value) == expected


@pytest.mark.parametrize("name", ["", " ", "\u2800", "\u3000\u2800", "\u200d", "\U0001d159"], ids=ascii)
def test_class_names_that_show_nothing_are_refused(name: str) -> None:
    with pytest.raises(DataError, match="with nothing to read: rename the class"):
        check_class_names("data 'own'", ("cat", name))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("caf\u00e9", "cafe\u0301"),
        ("cat", "cat\ufe0f"),
        ("cat", "ca\u200dt"),
        ("a cat", "a\u2800cat"),
        ("\u212b", "\u00c5"),
    ],
    ids=ascii,
)
def test_names_that_look_the_same_are_one(one: str, other: str) -> None:
    with pytest.raises(DataError, match="two classes named"):
        check_class_names("data 'own'", (one, other))


def test_names_of_all_scripts_stay_as_they_are() -> None:
    check_class_names(
        "it", ("\u2764\ufe0f", "\U0001f468\u200d\U0001f680", "\u0646\u0645\u06cc\u200c\u062e", "\ud55c\uad6d", "A", "a")
    )
