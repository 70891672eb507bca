"""The weights that a run starts from, and what they mean for its images."""

import re
from typing import TYPE_CHECKING, Any

from atopipe.pipeline.config.normalisation import parse_normalisation
from atopipe.pipeline.config.schema import Config
from atopipe.pipeline.models.weights.source import TrainedOn, WeightsSource, is_file_name
from atopipe.pipeline.system.errors import UsageError
from atopipe.pipeline.system.files import sha256_file
from atopipe.pipeline.system.text import reason

if TYPE_CHECKING:
    from torch import nn

    from atopipe.pipeline.data.dataset import Data
    from atopipe.pipeline.models.wrappers import Note

PHOTOGRAPHS = ("imagefolder:", "webdataset:")
PUBLISHED = re.compile(r"-([0-9a-f]{8,})\.")  # the first digits of the digest, in the names of torch.hub's files


def model_name(config: Config) -> str:
    """The network's name, with the tag of its weights where timm builds it after that; UsageError for a tag alone."""
    from atopipe.pipeline.models.build import TIMM
    from atopipe.pipeline.models.weights.timm_weights import tagged

    name, weights = config.model.name, config.model.weights
    if not name.startswith(TIMM):
        return name
    if weights is None and "." in name:
        raise UsageError(
            f"--model '{name}' names weights by the tag behind the dot, and none are loaded: "
            "add --weights default, or leave the tag out"
        )
    return name if weights is None or is_file_name(weights) else tagged(name, weights)


def new_model(config: Config, classes: int, note: "Note" = lambda text: None) -> "nn.Module":
    """The network for so many classes, freshly initialised from torch's global random state.

    `note` is told what had to be done with a network as its factory returned it.
    """
    from atopipe.pipeline.models.build import build_model

    return build_model(model_name(config), classes, config.model.args, note)


def weights_of(config: Config, *, fetched: bool = False) -> WeightsSource | None:
    """The weights to start from, if there are any; where they have to be `fetched`, their file is there."""
    from atopipe.pipeline.models.weights.find import fetch_weights, find_weights

    settings = config.model
    if settings.weights is None:
        if settings.keep_head is not None:
            raise UsageError(
                "--keep-head speaks of the classifier of starting weights: give --weights, or leave it out"
            )
        return None
    return (fetch_weights if fetched else find_weights)(settings.name, settings.weights, settings.args)


def load_start(config: Config, model: "nn.Module", classes: int) -> str:
    """Copies the starting weights into `model`, and says in one line what was done."""
    source = weights_of(config, fetched=True)
    if source is None:
        raise UsageError("there are no weights to start from: give --weights")
    note = load_source(config, source, model, classes, keep_head=config.model.keep_head)
    return f"from {source.key}: {note}{_doubt(source)}"


def load_source(
    config: Config, source: WeightsSource, model: "nn.Module", classes: int, *, keep_head: bool | None
) -> str:
    """Copies weights of the configuration's network into `model`, and says what was done; see `load_checkpoint`."""
    from atopipe.pipeline.models.pretrained import load_checkpoint
    from atopipe.pipeline.models.weights.checkpoint import read_checkpoint

    content = read_checkpoint(source.file, source.who)
    try:
        content = source.adapt(content)
    except Exception as error:  # timm's own loading raises what torch raises
        remedy = f"give {source.option} FILE"
        raise UsageError(f"{source.who} does not fit timm's network ({reason(error)}): {remedy}") from error

    def build(count: int) -> "nn.Module":
        return new_model(config, count)

    return load_checkpoint(model, content, classes, build=build, keep_head=keep_head, who=source.who)


def _doubt(source: WeightsSource) -> str:
    """Whether a file is another than its library published, as far as its name tells."""
    published = PUBLISHED.search(source.file.name) if source.address else None
    if published is None or sha256_file(source.file).startswith(published[1]):
        return ""
    return f"; not the published file: its SHA-256 does not begin with {published[1]}"


def described(config: Config) -> dict[str, str] | None:
    """What the run's records say of the starting weights."""
    source = weights_of(config, fetched=True)
    if source is None:
        return None
    named = (
        {"license": source.license, "address": source.address} if source.address else {"license": "not known of a file"}
    )
    key = source.key if source.address else source.file.name  # the folders above have no place in what is handed over
    return {"key": key, "file": source.file.name, "sha256": sha256_file(source.file), **named}


def input_of(config: Config) -> dict[str, Any]:
    """The size, margin and interpolation of the images, as `load_data` takes them.

    Where the user gives no size, photographs have that which weights with a name were trained with; scaling with the
    weights' interpolation, and with their margin where they have their size.
    """
    trained, size = trained_on(config), config.data.input_size
    if trained is None or not config.data.source.startswith(PHOTOGRAPHS):
        return {"input_size": size}
    side = size or max(trained.size)
    resize = None if side != max(trained.size) else _even_margin(side, max(trained.resize))
    return {"input_size": side, "resize": resize, "interpolation": trained.interpolation}


def _even_margin(size: int, resize: int) -> tuple[int, int]:
    """So that the centre of the centre is the centre."""
    side = size + 2 * max(0, round((resize - size) / 2))
    return side, side


def trained_on(config: Config) -> TrainedOn | None:
    """What is known of the images of the starting weights."""
    source = weights_of(config)
    return source.trained_on if source else None


def normalised(config: Config, data: "Data") -> tuple["Data", str | None]:
    """The data, normalised as the configuration asks, and a line about it where it is not by the data's own figures."""
    wanted, trained = config.data.normalize, trained_on(config)
    given = parse_normalisation(wanted) if wanted else None
    if wanted == "weights" and trained is None:
        which = "what a file was trained with is not known" if config.model.weights else "there are no weights"
        raise UsageError(f"--normalize weights: {which}: give MEAN:STD, or --normalize data")
    if given is None and (wanted == "data" or trained is None):
        return data, _untold(config)
    mean, std = given or (trained.mean, trained.std)  # type: ignore[union-attr]  # there is one of the two
    whose = "as --normalize says" if given else "as the weights were trained"
    numbers = [", ".join(f"{number:g}" for number in numbers) for numbers in (mean, std)]
    return data.normalised(mean, std), f"input   normalised {whose}: mean {numbers[0]}, deviation {numbers[1]}"


def _untold(config: Config) -> str | None:
    if config.model.weights is None or config.data.normalize:
        return None
    return "input   normalised by the training images; --normalize MEAN:STD names what the weights were trained with"
