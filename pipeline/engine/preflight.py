"""The preflight check, on random weights: do removal, export and parity work for this network?

Masks drawn at random within the budgets are frozen, removed and proven lossless, and what is left is exported and
compared in ONNX Runtime. It takes seconds, and fails before the first epoch rather than after the last.
"""

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from atopipe.pipeline.config.settings import COST_NAMES
from atopipe.pipeline.rundir.layout import MODEL

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from atopipe.ato.groups import Groups
    from atopipe.ato.recipe import Align
    from atopipe.ato.search.budget import Budget


@dataclass(frozen=True)
class Preflight:
    """What came out: fractions of the dense network by cost, differences as in a run, and the seconds it took."""

    ratios: dict[str, float]
    lossless: float
    parity: float
    tolerance: float
    opset: int
    bytes: int
    seconds: float

    @property
    def passed(self) -> bool:
        """Whether ONNX Runtime computes what torch computes; removal that is not lossless raises."""
        return self.parity <= self.tolerance

    def as_text(self) -> str:
        """One line."""
        kept = " and ".join(f"{ratio:.4f} of {COST_NAMES[cost]}" for cost, ratio in self.ratios.items())
        return (
            f"{kept} kept, masked = shrunk within {self.lossless:.0e}, {self.bytes / 1e6:.1f} MB of ONNX "
            f"(opset {self.opset}), torch = ONNX Runtime within {self.parity:.0e}, {self.seconds:.1f} s"
        )


def run_preflight(
    model: "nn.Module",
    groups: "Groups",
    budgets: "Sequence[Budget]",
    example: "Tensor",
    *,
    align: "Align",
    generator: "torch.Generator",
) -> Preflight:
    """Shrinks, proves, exports and compares a copy of `model` [1, C, H, W] -> [1, classes] with random weights.

    Raises what these steps raise: BudgetError, LossyError, ExportError, ParityError.
    """
    import torch

    from atopipe.ato.discovery.invariance import Probe
    from atopipe.ato.removal.shrink import prove_lossless, shrink
    from atopipe.ato.removal.slices import scale_groups
    from atopipe.ato.search.cost import kept_fraction
    from atopipe.ato.search.selection import best_groups, select_widths

    started = time.perf_counter()
    probe = Probe(model, example, generator)
    masked = probe.model.float()
    scores = torch.rand(groups.total, generator=generator)
    widths = select_widths(scores, groups, budgets, align)
    mask = best_groups(scores, groups, widths)
    scale_groups(masked, groups, mask)
    small, _ = shrink(masked, groups, mask)
    lossless = prove_lossless(masked, groups, mask, small, probe.images[:1], generator).max_rel_diff
    parity, tolerance, opset, size = _export(small, example, generator)
    return Preflight(
        ratios={budget.cost.name: kept_fraction(budget.cost, widths) for budget in budgets},
        lossless=lossless,
        parity=parity,
        tolerance=tolerance,
        opset=opset,
        bytes=size,
        seconds=time.perf_counter() - started,
    )


def _export(small: "nn.Module", example: "Tensor", generator: "torch.Generator") -> tuple[float, float, int, int]:
    """Largest relative difference in ONNX Runtime, the one allowed, opset and bytes of the file."""
    import torch

    from atopipe.export.onnx import export_onnx
    from atopipe.pipeline.models.inference import as_function, in_float64
    from atopipe.validate.parity import measure_parity

    images = torch.randn((1, *example.shape[1:]), generator=generator).numpy()  # exported with a batch of two
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / MODEL
        report = export_onnx(small, example, path, metadata={})
        single, exact = as_function(small.eval(), torch.device("cpu")), in_float64(small)
        parity = measure_parity(single, path, images, exact=exact, batch_sizes=(1,))
    return parity.max_rel_diff, parity.tolerance, report.opset, report.bytes
