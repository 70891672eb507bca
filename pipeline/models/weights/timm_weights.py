"""The weights that timm names: a tag of a model, or the default one; from the Hugging Face hub, or from an address."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from atopipe.pipeline.models.build import TIMM, timm_library
from atopipe.pipeline.models.weights.download import download
from atopipe.pipeline.models.weights.source import TrainedOn, WeightsSource
from atopipe.pipeline.system.errors import UsageError
from atopipe.pipeline.system.text import did_you_mean, nearest_or_all

# What timm looks for in a repository of the hub, in its order.
ON_THE_HUB = ("model.safetensors", "pytorch_model.bin")


def tagged(model: str, weights: str) -> str:
    """`timm/resnet18` with the tag `a1_in1k` -> `timm/resnet18.a1_in1k`; a name that has its tag is not changed."""
    return model if "." in model or weights.lower() == "default" else f"{model}.{weights}"


def find(model: str, weights: str, args: Mapping[str, object], option: str) -> WeightsSource:
    """The weights that the tag in the name of `model`, or `weights`, stands for; of neither, timm's default."""
    timm = timm_library(model)
    name = tagged(model, weights).removeprefix(TIMM)
    architecture, _, tag = name.partition(".")
    _require_known(timm, model, architecture, tag, weights, option)
    settings: Any = timm.get_pretrained_cfg(name)
    if settings.custom_load and not settings.hf_hub_id:
        raise UsageError(
            f"weights '{name}' of timm are not stored as tensors of torch: choose another tag, or give a file"
        )
    key = f"{TIMM}{architecture}.{settings.tag}" if settings.tag else f"{TIMM}{architecture}"
    place = _on_the_hub(settings) if settings.hf_hub_id else _at_an_address(settings.url)
    return WeightsSource(
        key=key,
        license=settings.license or "not stated by timm",
        trained_on=_trained_on(settings),
        adapt=lambda checkpoint: _adapted(timm, name, args, checkpoint),
        option=option,
        **place,
    )


def _require_known(timm: Any, model: str, architecture: str, tag: str, weights: str, option: str) -> None:
    known = timm.list_models()
    if architecture not in known:
        raise UsageError(f"unknown model '{model}': {did_you_mean(architecture, known) or 'see timm.list_models()'}")
    if weights.lower() not in ("default", tag.lower()):
        raise UsageError(f"{option} '{weights}' is another tag than that of --model '{model}': write {option} default")
    names = [name.partition(".") for name in timm.list_pretrained(f"{architecture}*")]
    tags = [tag for name, _, tag in names if name == architecture]
    if not tags:
        raise UsageError(f"{option} '{weights}' is not a file, and timm has no weights for '{model}': give a file")
    if tag and tag not in tags:
        raise UsageError(f"'{tag}' is neither a file nor weights of 'timm/{architecture}': {nearest_or_all(tag, tags)}")


def _on_the_hub(settings: Any) -> dict[str, Any]:
    """Where the weights are, or are looked for, in the hub's cache, and how they come there."""
    from huggingface_hub import constants, try_to_load_from_cache

    repository, _, revision = settings.hf_hub_id.partition("@")
    names = [settings.hf_hub_filename] if settings.hf_hub_filename else list(ON_THE_HUB)
    cached = (try_to_load_from_cache(repository, name, revision=revision or None) for name in names)
    folder = Path(constants.HF_HUB_CACHE) / f"models--{repository.replace('/', '--')}"
    looked_for = folder / "snapshots" / "*" / names[0]
    return {
        "file": next((Path(path) for path in cached if isinstance(path, str)), looked_for),
        "address": f"{constants.ENDPOINT}/{repository}",
        "forbidden": "HF_HUB_OFFLINE" if constants.HF_HUB_OFFLINE else "",
        "remedy": f"run 'hf download {repository} {names[0]}' on another machine and copy '{folder}'",
        "fetch": lambda: _from_the_hub(repository, names, revision or None),
    }


def _from_the_hub(repository: str, names: list[str], revision: str | None) -> None:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    for name in names:
        try:
            hf_hub_download(repository, name, revision=revision)
        except LocalEntryNotFoundError:
            raise
        except EntryNotFoundError:
            if name == names[-1]:
                raise
        else:
            return


def _at_an_address(url: str | tuple[str, str]) -> dict[str, Any]:
    """The same for a file that timm keeps where torch.hub keeps its own."""
    from torch import hub

    address, name = (url, Path(urlparse(url).path).name) if isinstance(url, str) else url
    path = Path(hub.get_dir()) / "checkpoints" / name
    remedy = f"fetch {address} on another machine and copy it there"
    return {"file": path, "address": address, "remedy": remedy, "fetch": lambda: download(address, path)}


def _trained_on(settings: Any) -> TrainedOn:
    size = tuple(settings.input_size[1:])
    resize = tuple(math.floor(side / settings.crop_pct) for side in size)
    return TrainedOn(size, resize, tuple(settings.mean), tuple(settings.std), settings.interpolation)


def _adapted(timm: Any, name: str, args: Mapping[str, object], checkpoint: object) -> object:
    """The tensors as timm puts them into its own network, whose names may be newer than the file's."""
    unchanged = {key: value for key, value in args.items() if key != "num_classes"}
    overlay = {"state_dict": checkpoint}
    model = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, **unchanged)
    return model.state_dict()
