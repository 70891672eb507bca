"""Write the small network as model.onnx, and for comparison the same architecture at full width as dense.onnx.

The latter has the weights that stage baseline trained, or random ones without it. Leaves these two, layers.json, the
FLOPs of every layer in both, and structure.json, what was read back from both files
after they had passed the checks of `export_onnx`.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from atopipe.pipeline.engine.networks import load_dense, load_shrunk
from atopipe.pipeline.engine.stage import Context, Stage
from atopipe.pipeline.rundir.layout import DENSE, MODEL
from atopipe.pipeline.system.files import write_json

if TYPE_CHECKING:
    from torch import nn

    from atopipe.export.onnx import ExportReport


def run(context: Context) -> dict[str, float]:
    from atopipe.export.graph import layer_flops

    small = _write(context, load_shrunk(context.run), context.folder / MODEL)
    dense = _write(context, _dense(context), context.folder / DENSE)
    write_json(context.folder / "structure.json", {MODEL: asdict(small), DENSE: asdict(dense)})
    rows = layer_rows(*(layer_flops(context.folder / name) for name in (DENSE, MODEL)))
    write_json(context.folder / "layers.json", rows)
    if left_out := [row["name"] for row in rows if None in row.values()]:
        context.display.say(f"layers  FLOPs not known, left out of the report's chart: {', '.join(left_out)}")
    return {"size.shrunk_bytes": small.bytes, "size.dense_bytes": dense.bytes}


def layer_rows(dense: Mapping[str, int | None], shrunk: Mapping[str, int | None]) -> list[dict[str, Any]]:
    """Name and FLOPs of every layer of either file; None where its FLOPs are not known, or it has no such layer."""
    names = [*dense, *(name for name in shrunk if name not in dense)]
    return [{"name": name, "dense": dense.get(name), "shrunk": shrunk.get(name)} for name in names]


def _dense(context: Context) -> "nn.Module":
    """With the weights of the baseline, where one was trained: some values of weights take longer to compute with."""
    return load_dense(context) if context.config.baseline else context.workspace.new_model().eval()


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
    inputs=("baseline", "shrink"),
    settings=("model", "data", "baseline", "seed"),
    libraries=("torch", "torchvision", "onnx", "onnxscript"),
)
