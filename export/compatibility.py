"""The oldest ONNX Runtime that loads a file, by the table its makers publish."""

from typing import NamedTuple


class Release(NamedTuple):
    """An ONNX Runtime and the newest files it loads; every later one loads them, too."""

    version: str
    opset: int
    ir_version: int


# "ONNX opset support" in https://onnxruntime.ai/docs/reference/compatibility.html, as it stood when 1.20 was out; of
# releases with equal columns the oldest. Every ONNX Runtime loads opset 7 and all that came after, up to its own.
RELEASES = (
    Release("1.0", 11, 6),
    Release("1.3", 12, 7),
    Release("1.6", 13, 7),
    Release("1.8", 14, 7),
    Release("1.9", 15, 8),
    Release("1.11", 16, 8),
    Release("1.12", 17, 8),
    Release("1.14", 18, 8),
    Release("1.15", 19, 8),
    Release("1.16", 19, 9),
    Release("1.17", 20, 9),
    Release("1.18", 21, 10),
)


def oldest_runtime(opset: int, ir_version: int) -> str | None:
    """Return the version of the oldest ONNX Runtime that loads such a file; None where the table does not know it."""
    able = (release for release in RELEASES if release.opset >= opset and release.ir_version >= ir_version)
    return next((release.version for release in able), None)
