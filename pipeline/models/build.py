"""Networks by name: of torchvision, for small images, of timm, and the user's own `your_pkg.mod:factory`.

Weights are always freshly initialised, from torch's global random state: seed it before.
"""

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from atopipe.pipeline.models import cifar
from atopipe.pipeline.models.wrappers import Note, unwrapped
from atopipe.pipeline.system.errors import MissingError, UsageError
from atopipe.pipeline.system.text import did_you_mean, reason, written
from atopipe.pipeline.system.user_code import find_factory, first_accepted, is_factory_name

# These two return a tuple while they train, unless switched off, and warn about their future initialisation.
WITHOUT_AUXILIARY_HEADS: Mapping[str, object] = {"aux_logits": False, "init_weights": True}
TIMM = "timm/"
# By which factories take the number of classes; the usual ones first.
CLASS_ARGUMENTS = (
    "num_classes",
    "n_classes",
    "classes",
    "nb_classes",
    "num_labels",
    "n_class",
    "num_class",
    "nclass",
    "nclasses",
    "n_labels",
    "class_num",
    "number_of_classes",
    "num_outputs",
    "n_outputs",
    "out_features",
    "out_dim",
    "output_dim",
    "out_channels",
    "nc",
)
# Arguments of libraries' builders that a run sets itself: what is given for them would be lost, or not on record.
SAID_ELSEWHERE: Mapping[str, str] = {
    "num_classes": "leave it out, the data say how many classes there are",
    "pretrained": "give --weights default",
    "checkpoint_path": "give --weights FILE",
    "weights": "give --weights",
}
BUILDER_ARGS: Mapping[str, Mapping[str, object]] = {
    "googlenet": WITHOUT_AUXILIARY_HEADS,
    "inception_v3": WITHOUT_AUXILIARY_HEADS,
}


class ModelError(UsageError):
    """The network cannot be built: the message names it and the remedy."""


def model_names() -> tuple[str, ...]:
    """torchvision's builders for image classification and the networks for small images, sorted."""
    from torchvision import models

    return tuple(sorted({*models.list_models(module=models), *cifar.BUILDERS}))


def build_model(
    name: str, num_classes: int, args: Mapping[str, object] | None = None, note: Note = lambda text: None
) -> nn.Module:
    """The network `name` with `num_classes` logits; `args` go to its builder.

    `name` is one of `model_names`, `timm/` and a name of timm's, `your_pkg.mod:factory`, importable from the working
    directory too, or `path/to/file.py:factory`. A factory is given the number by the first of `CLASS_ARGUMENTS` that it
    takes; its network is taken out of wrappers and cast to float32, of which `note` is told. Raises ModelError, or
    MissingError where timm is not installed.
    """
    if ":" in name and not name.startswith(TIMM):
        return _from_factory(name, dict(args or {}), num_classes, note)
    for argument, remedy in SAID_ELSEWHERE.items():
        if argument in (args or {}):
            raise ModelError(f"--model-args {argument} would not count for model '{name}': {remedy}")
    build = _from_timm if name.startswith(TIMM) else _by_name
    return build(name, dict(args or {}), {"num_classes": num_classes})


def _by_name(name: str, args: Mapping[str, object], classes: Mapping[str, object]) -> nn.Module:
    known = model_names()
    if name not in known:
        example = "give a torchvision classification model such as resnet50, or your_pkg.mod:factory"
        raise ModelError(f"unknown model '{name}': {did_you_mean(name, known) or example}")
    return _call(f"model '{name}'", _builder(name), {**BUILDER_ARGS.get(name, {}), **args, **classes})


def _builder(name: str) -> Callable[..., object]:
    from torchvision import models

    builder: Callable[..., object] = cifar.BUILDERS.get(name) or models.get_model_builder(name)
    return builder


def _from_timm(name: str, args: Mapping[str, object], classes: Mapping[str, object]) -> nn.Module:
    timm = timm_library(name)
    known, wanted = timm.list_models(), name.removeprefix(TIMM)
    if wanted.partition(".")[0] not in known:
        raise ModelError(f"unknown model '{name}': {did_you_mean(wanted, known) or 'see timm.list_models()'}")
    return _call(f"model '{name}'", timm.create_model, {"model_name": wanted, "pretrained": False, **args, **classes})


def timm_library(name: str) -> Any:
    """timm, which model `name` needs; raises MissingError where it cannot be imported."""
    try:
        import timm
    except ImportError as error:
        raise MissingError(
            f"model '{name}' needs timm, which cannot be imported ({reason(error)}): pip install 'atopipe[timm]'"
        ) from error
    return timm


def _from_factory(name: str, args: Mapping[str, object], num_classes: int, note: Note) -> nn.Module:
    if not is_factory_name(name):
        raise ModelError(f"model '{name}' is not a factory name: write it as your_pkg.mod:factory or net.py:factory")
    who = f"model factory '{name}'"
    factory = find_factory(who, name, "a torch.nn.Module", ModelError)
    argument = first_accepted(factory, CLASS_ARGUMENTS)
    if argument in args:
        remedy = SAID_ELSEWHERE["num_classes"]
        raise ModelError(f"--model-args {argument} would not count for {who}: {remedy}")
    model = _call(who, factory, {**args, **({argument: num_classes} if argument else {})})
    try:
        model = unwrapped(model, note)
    except ValueError as error:
        raise ModelError(f"{who} cannot be used: {error}") from None
    devices = {tensor.device.type for tensor in (*model.parameters(), *model.buffers())} - {"cpu"}
    if devices:
        raise ModelError(f"{who} built its network on {min(devices)}: build it on cpu; --device moves it")
    return model


def _call(who: str, builder: Callable[..., object], args: Mapping[str, object]) -> nn.Module:
    try:
        model = builder(**args)
    except (Exception, SystemExit) as error:  # user code may raise anything
        raise ModelError(f"{who} cannot be built with {written(args)}: {reason(error)}") from error
    if not isinstance(model, nn.Module):
        raise ModelError(f"{who} returned {type(model).__name__}: return a torch.nn.Module")
    return model
