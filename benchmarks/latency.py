"""How much faster is the small network? Dense and shrunk interleaved in ONNX Runtime, with an interval of the ratio.

    python benchmarks/latency.py                                       # the two cases of benchmarks/README.md
    python benchmarks/latency.py --case resnet50:0.5 --align 1         # another one, widths not aligned

Random weights, the same share of every width: what counts for the time is how many channels there are. Every result
is a line of results/latency.jsonl.
"""

import tempfile
from dataclasses import asdict
from pathlib import Path

import click
import numpy as np
import torch
from record import append, environment

from atopipe.ato.discovery.find import find_groups
from atopipe.ato.recipe import Align
from atopipe.ato.removal.shrink import shrink
from atopipe.ato.search.budget import Budget
from atopipe.ato.search.cost import flops, kept_fraction
from atopipe.ato.search.selection import best_groups, select_widths
from atopipe.export.onnx import export_onnx
from atopipe.pipeline.models.build import build_model
from atopipe.validate.latency import time_interleaved

CASES = ("resnet50:0.3", "mobilenet_v2:0.5")
CLASSES = 1000


def measure(model: str, target: float, align: Align, size: int, threads: int, seconds: float) -> None:
    """One network: FLOPs kept, and the ratio of the latencies with its interval."""
    torch.manual_seed(0)
    dense, example = build_model(model, CLASSES).eval(), torch.zeros(1, 3, size, size)
    groups = find_groups(dense, example, torch.Generator().manual_seed(0))
    cost = flops(dense, groups, example)
    scores = torch.cat([torch.arange(count).double() / count for count in groups.sizes])
    widths = select_widths(scores, groups, [Budget.of_dense(cost, target)], align)
    small, _ = shrink(dense, groups, best_groups(scores, groups, widths))
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / name for name in ("dense.onnx", "model.onnx")]
        for network, file in zip((dense, small), files, strict=True):
            export_onnx(network, example, file, metadata={})
        images = np.random.default_rng(0).normal(size=(8, 3, size, size)).astype(np.float32)
        found = time_interleaved(files, images, threads=threads, budget_s=seconds).compare(0, 1)
    case = {"model": model, "target": target, "align": align, "size": size, "threads": threads}
    append("latency", {**case, "flops": kept_fraction(cost, widths), **asdict(found), "environment": environment()})
    click.echo(
        f"{model} at {target:g}: FLOPs {kept_fraction(cost, widths):.4f}, latency {found.ratio}, {found.kept:.2f} kept"
    )


@click.command()
@click.option("--case", "cases", multiple=True, default=CASES, show_default=True, metavar="MODEL:TARGET")
@click.option("--align", default="auto", show_default=True)
@click.option("--size", default=224, show_default=True, help="Pixels of the square input.")
@click.option("--threads", default=1, show_default=True, help="Of ONNX Runtime.")
@click.option("--seconds", default=40.0, show_default=True, help="For each case.")
def main(cases: tuple[str, ...], align: str, size: int, threads: int, seconds: float) -> None:
    """Dense against shrunk latency."""
    for case in cases:
        model, _, target = case.partition(":")
        measure(model, float(target), "auto" if align == "auto" else int(align), size, threads, seconds)


if __name__ == "__main__":
    main()
