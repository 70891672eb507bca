"""Weights to start from, by name or as a file: where they are, whose they are, and what images they were trained on."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

WEIGHTS = "--weights"
FILE_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt", ".safetensors", ".tar", ".pkl", ".th", ".npz", ".onnx", ".pb", ".h5")


@dataclass(frozen=True)
class TrainedOn:
    """The input that weights were trained with: RGB divided by 255, less `mean`, divided by `std`, per channel.

    An image is scaled by `interpolation` until it covers `resize`, and its central `size` is taken (height, width).
    """

    size: tuple[int, int]
    resize: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str


def _as_it_is(checkpoint: object) -> object:
    return checkpoint


@dataclass(frozen=True)
class WeightsSource:
    """`key`: the name that the library, or the user, has for them; `file`: where they are, or are looked for.

    `address`: where they can be fetched from; empty for a file of the user's. `fetch` puts them into the library's
    cache, `remedy` says how a person does; `forbidden` names what keeps them from being fetched. `adapt` turns the
    file's content into what fits the network. `option`: what asked for them, as messages name it.
    """

    key: str
    file: Path
    license: str = ""
    address: str = ""
    trained_on: TrainedOn | None = None
    remedy: str = ""
    forbidden: str = ""
    fetch: Callable[[], None] = field(default=lambda: None)
    adapt: Callable[[object], object] = field(default=_as_it_is)
    option: str = WEIGHTS

    @property
    def who(self) -> str:
        """What messages call them."""
        return f"cached file '{self.file}' of {self.key}" if self.address else f"{self.option} '{self.file}'"


def is_file_name(weights: str) -> bool:
    """Whether `--weights` names a file: by a folder or an ending, or because there is one."""
    return "/" in weights or "\\" in weights or weights.lower().endswith(FILE_SUFFIXES) or Path(weights).is_file()


def file_named(weights: str) -> Path:
    """The file that `weights` names, where it names one; `~` is the user's folder."""
    return Path(weights).expanduser()
