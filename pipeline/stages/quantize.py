"""Make the variants of model.onnx that `--variants` asks for: float16, and int8 calibrated on training images.

Leaves a file for each, such as model.int8.onnx, and variants.json: what was read back from it, or why there is none.
Whether a variant is delivered is decided by stage validate.
"""

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from atopipe.pipeline.engine.stage import Context, Stage
from atopipe.pipeline.engine.workspace import Stream
from atopipe.pipeline.rundir.layout import MODEL, file_of
from atopipe.pipeline.system.files import write_json

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


CALIBRATION_IMAGES = 256


def run(context: Context) -> dict[str, float]:
    from atopipe.export.onnx import ExportError
    from atopipe.export.variants import QuantizeError, write_variant

    model, images = context.input("export", MODEL), _calibration_images(context)
    found: dict[str, dict[str, Any]] = {}
    for name in context.config.variants[1:]:
        try:
            found[name] = asdict(write_variant(name, model, context.folder / file_of(name), images))
        except (QuantizeError, ExportError) as error:
            context.display.say(f"{name:<7} skipped: {error}")
            found[name] = {"reason": str(error)}
    write_json(context.folder / "variants.json", found)
    return {f"size.{name}_bytes": report["bytes"] for name, report in found.items() if "bytes" in report}


def _calibration_images(context: Context) -> "NDArray[np.float32]":
    """Training images [N, C, H, W] as they are in use, without augmentation, in the same shares of each class."""
    data, generator = context.workspace.data, context.workspace.generator(Stream.CALIBRATION)
    drawn = data.subset(min(CALIBRATION_IMAGES, len(data.train)), generator).train
    images, _ = next(iter(drawn.batches(len(drawn), device="cpu")))
    return images.numpy()


STAGE = Stage(
    name="quantize",
    run=run,
    inputs=("export",),
    settings=("data", "variants", "seed"),
    libraries=("torch", "onnx", "onnxruntime"),
    wanted=lambda config: config.has_variants,
    remedy="'--variants fp32,fp16,int8' to name what to make",
)
