"""What the networks answer, image by image, and pictures of some images that they answer differently, or wrongly."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from atopipe.pipeline.engine.stage import Context
from atopipe.pipeline.models.inference import save_tensors
from atopipe.pipeline.rundir.layout import ANSWERS, EXAMPLES

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from atopipe.validate.accuracy import Accuracy

SHOWN = 12
SIDE = 96  # pixels of the longer side of a picture in the report


def save_answers(context: Context, accuracies: "Mapping[str, Accuracy]") -> None:
    """Writes `ANSWERS`, int32 [N] each of labels, onnx and, with a baseline, dense; and `EXAMPLES`.

    The latter: `index` int32 [n] of images that dense and ONNX answer differently, or without a baseline that ONNX
    answers wrongly, spread over the set; `pixels` uint8 [n, 3, h, w] of them, as the network sees them.
    """
    import torch

    named = {name: accuracies[name].predictions for name in ("dense", "onnx") if name in accuracies}
    labels = context.workspace.data.val.labels
    answers = {"labels": labels, **{name: torch.from_numpy(found) for name, found in named.items()}}
    save_tensors(context.folder / ANSWERS, {name: found.to(torch.int32) for name, found in answers.items()})
    telling = (answers["onnx"] != answers.get("dense", labels)).nonzero().flatten()
    chosen = telling[torch.linspace(0, len(telling) - 1, min(SHOWN, len(telling))).round().long()]
    save_tensors(context.folder / EXAMPLES, {"index": chosen.to(torch.int32), "pixels": _pictures(context, chosen)})


def _pictures(context: Context, chosen: "torch.Tensor") -> "Tensor":
    """The pixels of the validation images `chosen` [n] that the network sees, scaled down to SIDE where larger."""
    import torch
    from torch.nn.functional import interpolate

    from atopipe.pipeline.data.augment import center_crop

    data = context.workspace.data
    height, width = data.preprocessing.size
    shrink = min(1.0, SIDE / max(height, width))
    size = (max(1, round(height * shrink)), max(1, round(width * shrink)))
    if len(chosen) == 0:
        return torch.zeros(0, 3, *size, dtype=torch.uint8)
    pixels = center_crop(next(iter(data.val.images.read([chosen], torch.device("cpu")))), (height, width))
    return interpolate(pixels.float(), size, mode="bilinear", antialias=True).round().clamp(0, 255).to(torch.uint8)
