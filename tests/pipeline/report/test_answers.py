"""Classes and confusions of the report against counting by hand; the pictures against the images themselves."""

import base64
import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file

from atopipe.pipeline.data.load import load_data
from atopipe.pipeline.report.answers import class_rows, confusion, examples, read_answers
from atopipe.pipeline.rundir.directory import RunDirectory

NAMES = ("cat", "dog", "eel", "fox")
LABELS, DENSE, ONNX = [0, 0, 0, 1, 1, 2], [0, 0, 0, 1, 0, 1], [0, 1, 1, 1, 1, 1]


def answers(**found: list[int]) -> dict[str, np.ndarray]:
    return {name: np.array(values, np.int32) for name, values in found.items()}


def test_classes_that_lost_most_come_first_and_those_without_images_not_at_all() -> None:
    rows = class_rows(answers(labels=LABELS, dense=DENSE, onnx=ONNX), NAMES)
    assert [(row.name, row.images, row.dense, row.taken_for) for row in rows] == [
        ("cat", 3, 1.0, ("dog", 2)),
        ("eel", 1, 0.0, ("dog", 1)),
        ("dog", 2, 0.5, None),
    ]
    assert [row.onnx for row in rows] == pytest.approx([1 / 3, 0.0, 1.0])


def test_without_a_dense_network_the_least_known_come_first() -> None:
    rows = class_rows(answers(labels=LABELS, onnx=ONNX), NAMES)
    assert [(row.name, row.dense) for row in rows] == [("eel", None), ("cat", None), ("dog", None)]


def test_confusion_counts_every_pair() -> None:
    counted = confusion(answers(labels=LABELS, onnx=ONNX), len(NAMES))
    by_hand = np.zeros((4, 4), int)
    for label, answer in zip(LABELS, ONNX, strict=True):
        by_hand[label, answer] += 1
    assert counted.tolist() == by_hand.tolist()


def test_a_run_keeps_what_was_answered_and_the_pictures_of_what_changed(finished: Path) -> None:
    run, metrics = RunDirectory.open(finished / "out"), json.loads((finished / "out/metrics.json").read_text())
    found = read_answers(run)
    assert found is not None
    for name in ("dense", "onnx"):
        assert (found[name] == found["labels"]).mean() == metrics[f"accuracy.{name}"]
    data = load_data("digits", seed=0)
    assert found["labels"].tolist() == data.val.labels.tolist()
    chosen = load_file(finished / "out/stages/validate/examples.safetensors")["index"].astype(np.int64)
    assert len(chosen) == min(12, int((found["dense"] != found["onnx"]).sum())) > 0
    images = next(iter(data.val.images.read([torch.from_numpy(chosen)], torch.device("cpu"))))
    for example, index, image in zip(examples(run, found, data.labels), chosen, images, strict=True):
        content = base64.b64decode(example.picture.partition(",")[2])
        assert (
            np.abs(np.asarray(Image.open(io.BytesIO(content))).transpose(2, 0, 1).astype(int) - image.numpy()).max()
            <= 1
        )
        assert (example.label, example.dense, example.onnx) == tuple(
            data.labels[found[name][index]] for name in ("labels", "dense", "onnx")
        )
        assert example.dense != example.onnx
