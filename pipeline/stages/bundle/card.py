"""MODEL_CARD.md: what the delivered model is, what was measured, and how to run it."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from atopipe.pipeline.report.summary import Summary
from atopipe.pipeline.system.text import in_markdown, needed_runtime

FEW = 10
BODY = """
## Input and output

`images`: float32 [batch, 3, {height}, {width}], preprocessed as in `preprocess.json`; `infer.py` does this. The
batch size is free.

`logits`: float32 [batch, {classes}], in the order of `labels.txt`: {labels}.

## Use

The file has opset {opset} and IR version {ir_version}: it {runtime}.

```sh
pip install numpy onnxruntime pillow
python infer.py --selftest
python infer.py --image photo.jpg
```
{variants}{origin}
## Scope of the measurements

Accuracy was measured on the validation images that came with the training data, latency on the machine that trained;
`python infer.py --bench` measures yours. Other kinds of images were not tested.

{digests}
"""
VARIANTS = """
Besides model.onnx (fp32) there is {names}, for `--variant NAME`. On the machine that trained, {winner} was the
fastest.
"""


def model_card(
    summary: Summary,
    labels: Sequence[str],
    preprocessing: Mapping[str, Any],
    structures: Mapping[str, Mapping[str, Any]],
    weights: Mapping[str, str] | None = None,
) -> str:
    """Markdown with the front matter that model hubs read; the figures are those of the run's summary.

    `structures`: what was read back from every model file, model.onnx first; `weights`: what training started from.
    """
    front = {"library_name": "onnx", "pipeline_tag": "image-classification", "tags": ["pruning", "onnxruntime"]}
    height, width = preprocessing["size"]
    structure = next(iter(structures.values()))
    shown = ", ".join(map(in_markdown, labels[:FEW])) + (f", ... ({len(labels)} in all)" if len(labels) > FEW else "")
    lines = ["---", *(f"{key}: {json.dumps(value)}" for key, value in front.items()), "---", "", summary.as_markdown()]
    return "\n".join(lines) + BODY.format(
        height=height,
        width=width,
        classes=len(labels),
        labels=shown,
        opset=structure["opset"],
        ir_version=structure["ir_version"],
        runtime=needed_runtime(structure),
        origin=_origin(weights),
        variants=_variants(summary, list(structures)[1:]),
        digests="  \n".join(f"SHA-256 of {name}: `{found['sha256']}`" for name, found in structures.items()),
    )


def _origin(weights: Mapping[str, str] | None) -> str:
    """Whose work the network was made from; a reader has to know its licence."""
    if weights is None:
        return ""
    source = f", from {weights['address']}" if "address" in weights else ""
    return (
        f"\n## Where it comes from\n\nTraining started from the weights `{weights['key']}` ({weights['file']}{source}; "
        f"licence: {weights['license']}).\nSHA-256 of that file: `{weights['sha256']}`\n"
    )


def _variants(summary: Summary, files: Sequence[str]) -> str:
    if not files:
        return ""
    winner = next(variant.name for variant in summary.variants if variant.fastest)
    return VARIANTS.format(names=" and ".join(files), winner=winner)
