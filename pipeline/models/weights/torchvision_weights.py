"""The weights that torchvision names: `DEFAULT` and the members of each model's enumeration."""

from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from atopipe.pipeline.models import cifar
from atopipe.pipeline.models.weights.download import download
from atopipe.pipeline.models.weights.source import TrainedOn, WeightsSource
from atopipe.pipeline.system.errors import UsageError
from atopipe.pipeline.system.text import nearest_or_all

# torchvision rescales the input inside these where it loads their weights: from its usual mean and deviation to these.
RESCALED = ("googlenet", "inception_v3")
HALVES = (0.5, 0.5, 0.5)


def find(model: str, weights: str, option: str) -> WeightsSource:
    """The member `weights` of the model's enumeration: its name in any case, with the enumeration's or without."""
    from torch import hub
    from torchvision import models

    if model in cifar.BUILDERS:
        raise UsageError(f"{option} '{weights}' is not a file, and '{model}' has no weights by name: give a file")
    members = models.get_model_weights(model)
    tag = weights.rpartition(".")[2].upper()
    if tag not in members.__members__:
        known = [name.lower() if name == "DEFAULT" else name for name in members.__members__]
        raise UsageError(
            f"{option} '{weights}' is neither a file nor weights of '{model}': {nearest_or_all(tag, known)}"
        )
    member: Any = members[tag]
    path = Path(hub.get_dir()) / "checkpoints" / Path(urlparse(member.url).path).name
    return WeightsSource(
        option=option,
        key=f"{members.__name__}.{member.name}",
        file=path,
        license=str(member.meta.get("license", "not stated by torchvision")),
        address=member.url,
        remedy=f"fetch {member.url} on another machine and copy it there",
        trained_on=_trained_on(model, member.transforms()),
        fetch=lambda: download(member.url, path),
    )


def _trained_on(model: str, transforms: Any) -> TrainedOn:
    """What the weights' own preprocessing does with an image."""
    (crop,), (resize,) = transforms.crop_size, transforms.resize_size
    mean, std = (HALVES, HALVES) if model in RESCALED else (tuple(transforms.mean), tuple(transforms.std))
    return TrainedOn((crop, crop), (resize, resize), mean, std, transforms.interpolation.value)
