"""The logits among what a network returns.

Networks of other libraries return tuples, dictionaries or objects that hold the logits among other things. Where it is
unambiguous which of them are the logits, the network is made to return these alone; names in its state dict stay.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from atopipe.pipeline.models.build import ModelError
from atopipe.pipeline.models.contract import in_evaluation

Key = int | str | None
"""Where the logits are: an index, a name, or None where they are all that is returned."""

SAME = 1e-2
"""Of the largest logit: what depends on the rest of a batch, or on chance, differs by more; rounding by less."""


def find_logits(model: nn.Module, images: Tensor, classes: int, who: str) -> Key:
    """Return where the logits are in what a freshly built network returns, by running it on two `images` [2, C, H, W].

    What has no logits, or does not run at all, is left to those who read its graph. Torch's random state and the mode
    of every module stay as they were. Raises ModelError, about `who`, where it is ambiguous which of them are meant,
    or where the logits of an image depend on chance or on the other images of its batch.
    """
    with in_evaluation(model), torch.random.fork_rng(devices=[]), torch.no_grad():
        try:
            output = model(images)
        except Exception:  # whatever the network's code raises: said where its graph is read
            return None
        key = _key_of(output, classes, who)
        logits = _part(output, key)
        if _is_table(logits):
            _require_repeatable(model, images, logits, key, who)
    return key


def give_logits(model: nn.Module, key: Key) -> nn.Module:
    """The same network, which returns the logits alone; its names stay, and it can be copied and traced."""
    if key is None:
        return model
    if isinstance(model, GraphModule):
        return _cut_graphs(model, key)
    kind: Any = type(model)

    def forward(self: nn.Module, images: Tensor) -> Any:
        output = kind.forward(self, images)
        return output if isinstance(output, Tensor) else _part(output, key)  # it may return them alone in training

    model.__class__ = type(kind.__name__, (kind,), {"forward": forward})
    return model


def _cut_graphs(model: GraphModule, key: Key) -> nn.Module:
    """The graphs of torch.fx are code: they are made to return one of the values; there may be one for each mode."""
    named = (getattr(model, name, None) for name in ("graph", "train_graph", "eval_graph"))
    for graph in {id(graph): graph for graph in named if graph is not None}.values():
        (output,) = (node for node in graph.nodes if node.op == "output")
        if not isinstance(output.args[0], Node):
            output.args = (output.args[0][key],)
    model.recompile()
    return model


def _key_of(output: Any, classes: int, who: str) -> Key:
    if isinstance(output, Tensor):
        return None
    if _is_table(_part(output, "logits")):
        return "logits"
    parts = output.items() if isinstance(output, Mapping) else enumerate(output) if _is_sequence(output) else ()
    fits = {key: part for key, part in parts if _is_table(part) and part.shape[1] == classes}
    for key, part in fits.items():
        if any(torch.allclose(part.softmax(1), other, atol=1e-5) for name, other in fits.items() if name != key):
            return key  # beside its own probabilities
    if len(fits) > 1:
        kind = type(output).__name__
        raise ModelError(
            f"{who} returns a {kind} with {len(fits)} tensors of shape [images, {classes}]: return the logits alone, "
            "or in a dict under the name 'logits'"
        )
    return next(iter(fits), None)


def _part(output: Any, key: Key) -> Any:
    """What is there under the key; None where there is nothing."""
    if key is None:
        return output if _is_table(output) else None
    if isinstance(key, str) and not isinstance(output, Mapping):
        return getattr(output, key, None)
    return output.get(key) if isinstance(output, Mapping) else output[key]


def _is_table(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dim() == 2


def _is_sequence(value: Any) -> bool:
    return isinstance(value, tuple | list)


def _require_repeatable(model: nn.Module, images: Tensor, logits: Tensor, key: Key, who: str) -> None:
    """Raises ModelError where the logits of an image depend on chance, or on the other images of its batch."""
    limit = SAME * float(logits.abs().max())
    if float((_part(model(images), key) - logits).abs().max()) > limit:
        raise ModelError(
            f"{who} gives other logits each time it evaluates the same images: draw random numbers in training only"
        )
    single = torch.cat([_part(model(images[place : place + 1]), key) for place in range(len(images))])
    if float((single - logits).abs().max()) > limit:
        blamed = [name for name, module in model.named_modules() if _uses_the_batch(module)]
        cause = (
            f"layer '{blamed[0]}' has track_running_stats=False: set it to True" if blamed else "evaluate each alone"
        )
        raise ModelError(f"{who} gives an image other logits when others are in its batch: {cause}")


def _uses_the_batch(module: nn.Module) -> bool:
    """Whether it is a norm layer that has no statistics but those of the batch."""
    return isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is None
