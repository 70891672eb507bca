"""Networks by name: every torchvision classification builder, and the user's own `your_pkg.mod:factory`.

Weights are always freshly initialised, from torch's global random state: seed it before.
"""

import importlib
import inspect
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType

from torch import nn

from atopipe.pipeline.errors import UsageError
from atopipe.pipeline.nearest import did_you_mean

# These two return a tuple while they train, unless told not to, and warn about their future initialisation.
WITHOUT_AUXILIARY_HEADS: Mapping[str, object] = {"aux_logits": False, "init_weights": True}
BUILDER_ARGS: Mapping[str, Mapping[str, object]] = {
    "googlenet": WITHOUT_AUXILIARY_HEADS,
    "inception_v3": WITHOUT_AUXILIARY_HEADS,
}


class ModelError(UsageError):
    """The network cannot be built: the message names it and the remedy."""


def model_names() -> tuple[str, ...]:
    """The torchvision builders for image classification, sorted."""
    from torchvision import models

    return tuple(sorted(models.list_models(module=models)))


def build_model(name: str, num_classes: int, args: Mapping[str, object] | None = None) -> nn.Module:
    """The network `name` with `num_classes` logits; `args` go to its builder.

    `name` is a torchvision classification builder, or `your_pkg.mod:factory`, importable from the working directory
    too. A factory is given `num_classes` where it takes it. Raises ModelError.
    """
    wanted = {**(args or {}), "num_classes": num_classes}
    return _from_factory(name, wanted) if ":" in name else _from_torchvision(name, wanted)


def _from_torchvision(name: str, args: Mapping[str, object]) -> nn.Module:
    from torchvision import models

    known = model_names()
    if name not in known:
        example = "give a torchvision classification model such as resnet50, or your_pkg.mod:factory"
        raise ModelError(f"unknown model '{name}': {did_you_mean(name, known) or example}")
    return _call(f"model '{name}'", models.get_model_builder(name), {**BUILDER_ARGS.get(name, {}), **args})


def _from_factory(name: str, args: Mapping[str, object]) -> nn.Module:
    module_name, _, attribute = name.partition(":")
    if not module_name or not attribute.isidentifier():
        raise ModelError(f"model '{name}' is not a factory name: write it as your_pkg.mod:factory")
    who = f"model factory '{name}'"
    factory = _attribute(who, _import(who, module_name), attribute)
    accepted = dict(args) if _takes(factory, "num_classes") else {k: v for k, v in args.items() if k != "num_classes"}
    return _call(who, factory, accepted)


def _import(who: str, module_name: str) -> ModuleType:
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)  # and left there: user code may import more when it is called
    try:
        return importlib.import_module(module_name)
    except Exception as error:  # user code may raise anything
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if missing and f"{module_name}.".startswith(f"{missing}."):
            remedy = f"install it, or run where {missing.replace('.', '/')}.py lies"
            raise ModelError(f"{who} does not import: there is no module '{missing}'; {remedy}") from error
        raise ModelError(f"{who} does not import: {_reason(error)}; repair {module_name}") from error


def _attribute(who: str, module: ModuleType, attribute: str) -> Callable[..., object]:
    found = getattr(module, attribute, None)
    if callable(found):
        return found  # type: ignore[no-any-return]  # callable() cannot tell what it returns
    functions = [name for name, value in vars(module).items() if callable(value)]
    hint = did_you_mean(attribute, functions) or "name a function that returns a torch.nn.Module"
    raise ModelError(f"{who}: module '{module.__name__}' has no function '{attribute}': {hint}")


def _takes(factory: Callable[..., object], argument: str) -> bool:
    try:
        parameters = inspect.signature(factory).parameters
    except ValueError:  # written in C, without a signature
        return False
    return argument in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())


def _call(who: str, builder: Callable[..., object], args: Mapping[str, object]) -> nn.Module:
    try:
        model = builder(**args)
    except Exception as error:  # user code may raise anything
        given = ", ".join(f"{key}={value!r}" for key, value in args.items())
        raise ModelError(f"{who} cannot be built with {given or 'no arguments'}: {_reason(error)}") from error
    if not isinstance(model, nn.Module):
        raise ModelError(f"{who} returned {type(model).__name__}: return a torch.nn.Module")
    return model


def _reason(error: Exception) -> str:
    first_line = next(iter(str(error).splitlines()), "")
    return f"{type(error).__name__}: {first_line}" if first_line else type(error).__name__
