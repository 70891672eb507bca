"""Why parity failed, in words: the first operation of the delivered file whose output is another one."""

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from atopipe.export.nodes import Node, cut_behind, nodes_of
from atopipe.pipeline.networks import as_function, in_float64
from atopipe.validate.divergence import Run, difference, first_parting
from atopipe.validate.parity import Case, Parity, ParityError, kinds_of_images, measure_parity
from atopipe.validate.session import CPU, Optimisation, usable_providers

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import nn

SAME_WEIGHTS = 1e-6
"""Of a tensor's largest value: the same operations on the same weights give the same bytes, constants that another
machine folded into each other nearly so."""

Export = Callable[[Path], object]


def compare(
    network: "nn.Module", model: Path, images: "NDArray[np.float32]", *, export: Export, seed: int
) -> tuple[Parity, str]:
    """Parity of the file with the network on every usable provider, and where they part, if they do.

    Raises ParityError where a comparison is impossible; it names that place as well, if the file is the reason.
    """
    import torch

    single, exact = as_function(network, torch.device("cpu")), in_float64(network)
    # The reference is the CPU's arithmetic: a GPU may convolve with shorter mantissas (TF32).
    try:
        parity = measure_parity(single, model, images, exact=exact, seed=seed, providers=usable_providers(model))
    except ParityError as error:
        found = _against_fresh(model, export, images[:1])
        raise ParityError(f"{error}; {found}" if found else str(error)) from error
    return parity, explain_divergence(parity, model, export, images, seed)


def explain_divergence(parity: Parity, model: Path, export: Export, images: "NDArray[np.float32]", seed: int) -> str:
    """One clause about the worst of what broke, in the simplest setting that breaks; empty where nothing did.

    A file that is wrong without optimisation on the CPU is compared with one that `export` writes afresh from the
    trained network; otherwise the setting that breaks is compared with that one, which does not.
    """
    if not parity.broken:
        return ""
    case = min(parity.broken, key=lambda case: (case.provider != CPU, case.optimisation != "NONE", -case.max_rel_diff))
    shown = kinds_of_images(images, seed)[case.images][: case.batch]
    if (case.provider, case.optimisation) == (CPU, "NONE"):
        same = "a fresh export is off in the same way, so that it is the exporter that changes the network"
        return _against_fresh(model, export, shown) or same
    plain = Run(partial(cut_behind, model), CPU, Optimisation.NONE)
    chosen = Run(partial(cut_behind, model), case.provider, Optimisation[case.optimisation])
    found = _first(model, plain, chosen, shown, parity.tolerance)
    where = _setting(case)
    return f"{where}, {found}" if found else f"{where}, small differences add up over the network"


def _against_fresh(model: Path, export: Export, images: "NDArray[np.float32]") -> str:
    """Where the file parts from a fresh export of the same network, as a clause; empty where it does not."""
    with tempfile.TemporaryDirectory() as folder:
        fresh = Path(folder) / "fresh.onnx"
        export(fresh)
        ours, theirs = (Run(partial(cut_behind, path), CPU, Optimisation.NONE) for path in (fresh, model))
        return _first(model, ours, theirs, images, SAME_WEIGHTS)


def _first(model: Path, wanted: Run, got: Run, images: "NDArray[np.float32]", limit: float) -> str:
    """The first operation of `model` after which the two runs differ, as a clause; empty where there is none."""

    def apart(tensor: str) -> float:
        return difference(wanted.tensor(tensor, images), got.tensor(tensor, images))

    node = first_parting(nodes_of(model), lambda tensor: apart(tensor) > limit)
    return f"the first operation that differs is {_described(node, max(map(apart, node.outputs)))}" if node else ""


def _described(node: Node, apart: float) -> str:
    layer = f" of layer '{node.layer}'" if node.layer else ""
    much = "is another one" if apart == float("inf") else f"is off by {apart:.2g} of its largest value"
    return f"'{node.name}' ({node.operator}{layer}), whose output {much}"


def _setting(case: Case) -> str:
    optimised = "with" if case.optimisation == "ALL" else "without"
    return f"only on {case.provider} {optimised} graph optimisation"
