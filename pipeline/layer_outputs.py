"""What every layer of a torch network reads and writes, to hold the operations of an exported file against."""

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor, nn

    Array = NDArray[np.float32]


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
