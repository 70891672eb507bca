"""Write the small network as model.onnx, and the same architecture at full width as dense.onnx for comparison.

Leaves these two, layers.json, the FLOPs of every layer in both, and structure.json, what was read back from both files
after they had passed the checks of `export_onnx`.
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from atopipe.pipeline.engine.networks import load_shrunk
from atopipe.pipeline.engine.stage import Context, Stage
from atopipe.pipeline.system.files import write_json

if TYPE_CHECKING:
    from torch import nn

    from atopipe.export.onnx import ExportReport


def run(context: Context) -> dict[str, float]:
    from atopipe.export.graph import layer_flops

    small = _write(context, load_shrunk(context), context.folder / "model.onnx")
    dense = _write(context, context.workspace.new_model().eval(), context.folder / "dense.onnx")
    write_json(context.folder / "structure.json", {"model.onnx": asdict(small), "dense.onnx": asdict(dense)})
    before, after = (layer_flops(context.folder / name) for name in ("dense.onnx", "model.onnx"))
    layers = [{"name": name, "dense": count, "shrunk": after.get(name, 0)} for name, count in before.items()]
    write_json(context.folder / "layers.json", layers)
    return {"size.shrunk_bytes": small.bytes, "size.dense_bytes": dense.bytes}


def _write(context: Context, model: "nn.Module", path: Path) -> "ExportReport":
    """Exports `model` with the labels and the preprocessing it needs."""
    from atopipe.export.onnx import export_onnx

    data = context.workspace.data
    metadata = {
        "labels": json.dumps(data.labels),
        "preprocessing": data.preprocessing.to_json(),
        "model": context.config.model.name,
    }
    return export_onnx(model, context.workspace.example, path, metadata=metadata)


STAGE = Stage(
    name="export",
    run=run,
    inputs=("shrink",),
    settings=("model", "data", "seed"),
    libraries=("torch", "torchvision", "onnx", "onnxscript"),
)
