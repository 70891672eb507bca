"""Which classes a run's network knows, what it takes them for, and pictures of what pruning changed, for the report."""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from atopipe.pipeline.rundir.directory import RunDirectory
from atopipe.pipeline.rundir.layout import ANSWERS, EXAMPLES

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Answers = Mapping[str, NDArray[np.int32]]

CLASSES_SHOWN = 20


@dataclass(frozen=True)
class ClassRow:
    """One class: its images, the share that dense (None: not known) and the ONNX file answer rightly.

    `taken_for`: the wrong answer that the ONNX file gives most often, and how often; None where it gives none.
    """

    name: str
    images: int
    dense: float | None
    onnx: float
    taken_for: tuple[str, int] | None

    @property
    def change(self) -> float:
        """What pruning added to the share of right answers; without a dense network, the share itself."""
        return self.onnx - (self.dense or 0.0)


@dataclass(frozen=True)
class Example:
    """A picture as a data address, and the classes it was taken for; `dense` is None where it is not known."""

    picture: str
    label: str
    dense: str | None
    onnx: str


def read_answers(run: RunDirectory) -> "Answers | None":
    """labels, onnx and, with a baseline, dense: classes [N] of the validation images; None of an older run."""
    from safetensors.numpy import load_file

    result = run.stages.result("validate")
    if result is None or ANSWERS not in result.artifacts:
        return None
    return load_file(run.stages.artifact("validate", ANSWERS))


def class_rows(answers: "Answers", names: Sequence[str]) -> list[ClassRow]:
    """Every class that has images, those first that lost most by pruning, or are known least."""
    rows = [_row(answers, names, number) for number in range(len(names)) if (answers["labels"] == number).any()]
    return sorted(rows, key=lambda row: (row.change, row.name))


def _row(answers: "Answers", names: Sequence[str], number: int) -> ClassRow:
    import numpy as np

    mine = answers["labels"] == number
    found = answers["onnx"][mine]
    wrong = np.bincount(found[found != number], minlength=len(names))
    dense = float((answers["dense"][mine] == number).mean()) if "dense" in answers else None
    taken_for = (names[int(wrong.argmax())], int(wrong.max())) if wrong.any() else None
    return ClassRow(names[number], int(mine.sum()), dense, float((found == number).mean()), taken_for)


def confusion(answers: "Answers", count: int) -> "NDArray[np.int64]":
    """How many images of each class (row) the ONNX file takes for each class (column), [count, count]."""
    import numpy as np

    pairs = answers["labels"].astype(np.int64) * count + answers["onnx"]
    return np.bincount(pairs, minlength=count * count).reshape(count, count)


def examples(run: RunDirectory, answers: "Answers", names: Sequence[str]) -> list[Example]:
    """The pictures that stage validate chose."""
    from safetensors.numpy import load_file

    kept = load_file(run.stages.artifact("validate", EXAMPLES))
    dense = answers.get("dense")
    return [
        Example(
            _data_address(pixels),
            names[answers["labels"][index]],
            None if dense is None else names[dense[index]],
            names[answers["onnx"][index]],
        )
        for index, pixels in zip(kept["index"], kept["pixels"], strict=True)
    ]


def _data_address(pixels: "NDArray[np.uint8]") -> str:
    """A picture [3, H, W] as PNG inside the address itself."""
    from PIL import Image

    content = io.BytesIO()
    Image.fromarray(pixels.transpose(1, 2, 0)).save(content, format="PNG")
    return f"data:image/png;base64,{base64.b64encode(content.getvalue()).decode()}"
