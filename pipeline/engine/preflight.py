"""The preflight check, on random weights: do removal, export and parity work for this network?

Masks drawn at random within the budgets are frozen, removed and proven lossless, and what is left is exported and
compared in ONNX Runtime. It takes seconds, and fails before the first epoch rather than after the last.
"""

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from atopipe.pipeline.config.settings import COST_NAMES
from atopipe.pipeline.rundir.layout import MODEL
from atopipe.pipeline.system.errors import AtopipeError, UsageError
from atopipe.pipeline.system.text import reason

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from atopipe.ato.groups import Groups
    from atopipe.ato.search.budget import Budget
    from atopipe.ato.search.selection import Align
    from atopipe.export.onnx import ExportReport
    from atopipe.validate.parity import Parity

IMAGES = 4  # random ones; a file is exported with a batch of two


@dataclass(frozen=True)
class Preflight:
    """What came out: fractions of the dense network by cost, differences as in a run, and the seconds it took.

    `rounding_ratio`: how many times as far as torch in float32 ONNX Runtime is from the same network in float64.
    """

    ratios: dict[str, float]
    lossless: float
    parity: float
    tolerance: float
    rounding_ratio: float
    opset: int
    bytes: int
    seconds: float

    @property
    def passed(self) -> bool:
        """Whether ONNX Runtime computes what torch computes; removal that is not lossless raises.

        Random weights may make more of float32's rounding than trained ones do: what torch is off by as well is no
        fault of the file.
        """
        from atopipe.validate.parity import ROUNDING_LIMIT

        return self.parity <= self.tolerance or self.rounding_ratio <= ROUNDING_LIMIT

    def as_text(self) -> str:
        """One line."""
        kept = " and ".join(f"{ratio:.4f} of {COST_NAMES[cost]}" for cost, ratio in self.ratios.items())
        return (
            f"{kept} kept, masked = shrunk within {self.lossless:.0e}, {self.bytes / 1e6:.1f} MB of ONNX "
            f"(opset {self.opset}), torch = ONNX Runtime within {self.parity:.0e}, {self.seconds:.1f} s"
        )


def passed_preflight(name: str, check: Callable[[], Preflight]) -> Preflight:
    """What `check` finds, a call of `run_preflight`, if it has passed; else UsageError about `name`, or BudgetError."""
    import torch

    from atopipe.ato.execution import is_out_of_memory
    from atopipe.ato.removal.shrink import LossyError
    from atopipe.ato.search.budget import BudgetError
    from atopipe.export.onnx import ExportError
    from atopipe.validate.parity import ParityError

    try:
        with torch.random.fork_rng(devices=[]):  # the check does not change the random numbers of the run
            preflight = check()
    except Exception as error:  # the network's own code may raise anything
        if isinstance(error, BudgetError | AtopipeError | OSError) or is_out_of_memory(error):
            raise
        said = error if isinstance(error, LossyError | ExportError | ParityError) else reason(error)
        raise UsageError(f"model '{name}' fails the preflight check: {said}") from error
    if not preflight.passed:
        raise UsageError(
            f"model '{name}' fails the preflight check: ONNX Runtime's logits differ from torch's by "
            f"{preflight.parity:.1e} of their size, more than {preflight.tolerance:g}; skip it with --no-preflight"
        )
    return preflight


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
    images = torch.randn((IMAGES, *example.shape[1:]), generator=generator)
    _fit_statistics(masked, images)
    small, _ = shrink(masked, groups, mask)
    lossless = prove_lossless(masked, groups, mask, small, probe.images[:1], generator).max_rel_diff
    parity, report = _export(small, example, images)
    return Preflight(
        ratios={budget.cost.name: kept_fraction(budget.cost, widths) for budget in budgets},
        lossless=lossless,
        parity=parity.max_rel_diff,
        tolerance=parity.tolerance,
        rounding_ratio=parity.rounding_ratio,
        opset=report.opset,
        bytes=report.bytes,
        seconds=time.perf_counter() - started,
    )


def _fit_statistics(masked: "nn.Module", images: "Tensor") -> None:
    """Norm layers' statistics from one batch, so that signals stay in range: the probe's may be of two tiny images."""
    import torch
    from torch.nn.modules.batchnorm import _BatchNorm

    if any(isinstance(module, _BatchNorm) for module in masked.modules()):
        with torch.no_grad():
            masked.train()
            masked(images)
    masked.eval()


def _export(small: "nn.Module", example: "Tensor", images: "Tensor") -> "tuple[Parity, ExportReport]":
    """How near ONNX Runtime is to torch on the images, and what was written."""
    import torch

    from atopipe.export.onnx import export_onnx
    from atopipe.pipeline.models.inference import as_function, in_float64
    from atopipe.validate.parity import measure_parity

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / MODEL
        report = export_onnx(small, example, path, metadata={})
        single, exact = as_function(small.eval(), torch.device("cpu")), in_float64(small)
        parity = measure_parity(single, path, images.numpy(), exact=exact, batch_sizes=(1, IMAGES))
    return parity, report
