"""Why parity failed, in words: the first operation of the delivered file whose output is another one."""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from atopipe.export.graph import Node, cut_behind, nodes_of
from atopipe.pipeline.models.inference import as_function, in_float64
from atopipe.validate.first_divergence import Run, difference, first_parting
from atopipe.validate.parity import ROUNDING_LIMIT, Case, Parity, ParityError, kinds_of_images, measure_parity
from atopipe.validate.session import CPU, Optimisation, usable_providers

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor, nn

    Array = NDArray[np.float32]


SAME_WEIGHTS = 1e-6
"""Of a tensor's largest value: the same operations on the same weights give the same bytes, constants that another
machine folded into each other nearly so."""

SAME_SUMS = 3e-6
"""The same for sums in another order, as torch and ONNX Runtime take them."""

ADD_UP = "small differences add up over the network"
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
    return parity, explain_divergence(parity, network, model, images, export=export, seed=seed)


def explain_divergence(
    parity: Parity, network: "nn.Module", model: Path, images: "NDArray[np.float32]", *, export: Export, seed: int
) -> str:
    """One clause about the worst of what broke, in the simplest setting that breaks; empty where nothing did.

    A file that is wrong without optimisation on the CPU is compared with one that `export` writes afresh from the
    trained network, and if that is wrong as well, with the network's layers; otherwise the setting that breaks is
    compared with that one, which does not.
    """
    if not parity.broken:
        return ""
    case = min(parity.broken, key=lambda case: (case.provider != CPU, case.optimisation != "NONE", -case.max_rel_diff))
    shown = kinds_of_images(images, seed)[case.images][: case.batch]
    if case.rounding > parity.tolerance * case.scale and case.rounding_ratio <= ROUNDING_LIMIT:
        return "torch in float32 is as far from float64: the network's numbers are too far apart for float32"
    if (case.provider, case.optimisation) == (CPU, "NONE"):
        limit = max(SAME_SUMS, min(parity.tolerance, case.max_rel_diff / 3))
        return _against_fresh(model, export, shown) or _against_layers(model, network, shown, limit)
    plain = Run(partial(cut_behind, model), CPU, Optimisation.NONE)
    chosen = Run(partial(cut_behind, model), case.provider, Optimisation[case.optimisation])
    found = _first(model, plain, chosen, shown, parity.tolerance)
    where = _setting(case)
    return f"{where}, {found or ADD_UP}"


def _against_fresh(model: Path, export: Export, images: "NDArray[np.float32]") -> str:
    """Where the file parts from a fresh export of the same network, as a clause; empty where it does not."""
    with tempfile.TemporaryDirectory() as folder:
        fresh = Path(folder) / "fresh.onnx"
        export(fresh)
        ours, theirs = (Run(partial(cut_behind, path), CPU, Optimisation.NONE) for path in (fresh, model))
        return _first(model, ours, theirs, images, SAME_WEIGHTS)


def _against_layers(model: Path, network: "nn.Module", images: "NDArray[np.float32]", limit: float) -> str:
    """Where a file that a fresh export does not better parts from the layers of the torch network, as a clause."""
    layers = {layer.name: layer for layer in layers_of(network, images)}
    run, nodes, before = Run(partial(cut_behind, model), CPU, Optimisation.NONE), nodes_of(model), "the input"
    place = ""
    for node in (node for node in nodes if node.layer in layers):
        layer = layers[node.layer]
        written = run.tensor(node.outputs[0], images)
        if min(difference(wanted, written) for wanted in layer.written) > limit:
            read = run.tensor(node.inputs[0], images)
            whole = read is None or difference(layer.read, read) <= limit  # None: the images themselves
            place = f"in layer '{node.layer}'" if whole else f"between {before} and layer '{node.layer}'"
            break
        before = f"layer '{node.layer}'"
    if not place and nodes[-1].layer in layers:
        return f"a fresh export is off in the same way: {ADD_UP}"
    return f"a fresh export is off in the same way: the exporter changes the network {place or f'behind {before}'}"


def _first(model: Path, wanted: Run, got: Run, images: "NDArray[np.float32]", limit: float) -> str:
    """The first operation of `model` after which the two runs differ, as a clause; empty where there is none."""

    def apart(tensor: str) -> float:
        return difference(wanted.tensor(tensor, images), got.tensor(tensor, images))

    node = first_parting(nodes_of(model), lambda tensor: apart(tensor) > limit)
    return f"the first operation that differs is {_described(node, max(map(apart, node.outputs)))}" if node else ""


def _described(node: Node, apart: float) -> str:
    layer = f" of layer '{node.layer}'" if node.layer else ""
    much = "is a different one" if apart == float("inf") else f"differs by {apart:.2g} of its largest value"
    return f"'{node.name}' ({node.operator}{layer}), whose output {much}"


def _setting(case: Case) -> str:
    optimised = "with" if case.optimisation == "ALL" else "without"
    return f"only on {case.provider} {optimised} graph optimisation"


@dataclass(frozen=True)
class Layer:
    """One module that has no modules in it, for some images.

    `written`: its output, and that of the layer called next, which an exporter may fold into it, as it does with norms.
    """

    name: str
    read: "Array"
    written: tuple["Array", ...]


def layers_of(network: "nn.Module", images: "Array") -> list[Layer]:
    """The layers in the order in which they are called; of one that is called more than once the first time."""
    import torch

    calls: list[tuple[str, Array, Array]] = []

    def note(name: str, _: "nn.Module", inputs: tuple[Any, ...], output: "Tensor") -> None:
        if inputs and all(isinstance(tensor, torch.Tensor) for tensor in (inputs[0], output)):
            calls.append((name, inputs[0].cpu().numpy(), output.cpu().numpy()))

    leaves = [(name, module) for name, module in network.named_modules() if name and not any(module.children())]
    hooks = [module.register_forward_hook(partial(note, name)) for name, module in leaves]
    try:
        with torch.inference_mode():
            network(torch.from_numpy(images))
    finally:
        for hook in hooks:
            hook.remove()
    found: dict[str, Layer] = {}
    for index, (name, read, _) in enumerate(calls):
        found.setdefault(name, Layer(name, read, tuple(written for _, _, written in calls[index : index + 2])))
    return list(found.values())
