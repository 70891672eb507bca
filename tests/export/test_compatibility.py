"""The oldest ONNX Runtime for a file."""

import itertools

import onnxruntime as ort
import pytest

from atopipe.export.compatibility import RELEASES, oldest_runtime


def number(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")[:2]))


@pytest.mark.parametrize(
    ("opset", "ir_version", "version"),
    [
        (18, 8, "1.14"),
        (17, 8, "1.12"),
        (17, 9, "1.16"),
        (18, 10, "1.18"),
        (13, 7, "1.6"),
        (7, 3, "1.0"),
        (22, 10, None),
        (18, 11, None),
    ],
)
def test_the_oldest_runtime_has_both_the_opset_and_the_format(opset: int, ir_version: int, version: str | None) -> None:
    assert oldest_runtime(opset, ir_version) == version


def test_releases_never_lose_what_they_could_load() -> None:
    for earlier, later in itertools.pairwise(RELEASES):
        assert number(earlier.version) < number(later.version)
        assert earlier.opset <= later.opset
        assert earlier.ir_version <= later.ir_version
        assert earlier[1:] != later[1:]


def test_the_runtime_that_is_installed_is_new_enough_for_what_is_exported_by_default() -> None:
    oldest = oldest_runtime(18, 8)
    assert oldest is not None
    assert number(oldest) <= number(ort.__version__)
