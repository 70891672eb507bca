"""From `--model` and `--weights` to the weights that a run starts from."""

from collections.abc import Mapping

from atopipe.pipeline.models.build import TIMM, model_names
from atopipe.pipeline.models.weights import timm_weights, torchvision_weights
from atopipe.pipeline.models.weights.download import fetch
from atopipe.pipeline.models.weights.source import WEIGHTS, WeightsSource, file_named, is_file_name
from atopipe.pipeline.system.errors import UsageError


def find_weights(
    model: str, weights: str, args: Mapping[str, object] | None = None, *, option: str = WEIGHTS
) -> WeightsSource:
    """The weights `weights` for the network `model`; nothing is read or fetched.

    A file; `default`, the best ones that torchvision or timm has for the model; or one of their tags, such as
    IMAGENET1K_V2. Raises UsageError for a name that the model does not have, with the nearest ones; `option` is what
    messages say asked for them.
    """
    if is_file_name(weights):
        return WeightsSource(weights, file_named(weights), option=option)
    if model.startswith(TIMM):
        return timm_weights.find(model, weights, args or {}, option)
    if model in model_names():
        return torchvision_weights.find(model, weights, option)
    raise UsageError(
        f"{option} '{weights}' is not a file, and '{model}' has no weights by name: "
        "give a file, or a model of torchvision or timm"
    )


def fetch_weights(
    model: str, weights: str, args: Mapping[str, object] | None = None, *, option: str = WEIGHTS
) -> WeightsSource:
    """The same, and the file is there.

    Looked for in the cache of the library that names them, then fetched by it. Raises MissingError where neither gives
    it.
    """
    source = find_weights(model, weights, args, option=option)
    if source.file.is_file() or not source.address:
        return source
    fetch(source)
    return find_weights(model, weights, args, option=option)
