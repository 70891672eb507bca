"""The names of what lies in a run directory, and what a complete stage has to say."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from pydantic import BaseModel, ConfigDict

from atopipe.pipeline.config.schema import FULL
from atopipe.pipeline.system.files import sha256_json

RESULT, MANIFEST = "result.json", "manifest.json"
INPUTS = "inputs.json"  # what the last look at the user's code, weights and images saw
DEVICES = "devices"  # what other machines measured
MODEL, DENSE = "model.onnx", "dense.onnx"  # what is delivered, and what it is compared with
STARTING_WEIGHTS = "starting_weights.json"  # of stage train: key, file, digest and licence
SEARCH, SEARCHED = "search", "search.safetensors"  # a stage that runs of other targets share, and what it leaves
GROUPS = "groups.json"  # of stages train and search: what may be pruned
DATA = "data.json"  # of stage train: what the source of the images answered, and what is odd about it
ANSWERS, EXAMPLES = "answers.safetensors", "examples.safetensors"  # of stage validate: see `save_answers`
EXECUTION = "execution.json"  # of stages that train: the device, and how the network was run on it


@dataclass(frozen=True, kw_only=True)
class StageSpec:
    """What the run directory needs to know of a stage.

    `name`: of its folder; `inputs`: the stages whose files it reads; `settings`: the sections of the configuration it
    depends on; `libraries`: the packages whose versions it depends on; `published`: whether its files have copies at
    the top of the run directory.
    """

    name: str
    inputs: tuple[str, ...] = ()
    settings: tuple[str, ...] = ()
    libraries: tuple[str, ...] = ()
    published: bool = False


class Depends(BaseModel):
    """What a stage depended on, as it stands in result.json."""

    stage: str
    settings: dict[str, Any]
    outside: dict[str, str]
    inputs: dict[str, str]
    libraries: dict[str, str]


class ResultForm(BaseModel):
    """result.json; see `Result`."""

    model_config = ConfigDict(extra="forbid")

    stage: str
    key: str
    depends: Depends
    artifacts: dict[str, str]
    metrics: dict[str, float]
    seconds: float
    peak_bytes: int
    machine: dict[str, Any] = {}


class StageForm(BaseModel):
    """What manifest.json says of a stage."""

    stage: str
    current: bool
    digest: str
    result: str
    inputs: dict[str, str]
    artifacts: dict[str, str]


class ManifestForm(BaseModel):
    """manifest.json; see `RunRecord`."""

    config: dict[str, Any]
    versions: dict[str, str]
    hardware: dict[str, Any]
    outside: dict[str, str]
    files: dict[str, str]
    stages: list[StageForm]


@dataclass(frozen=True)
class Result:
    """A complete stage.

    `depends`: what the key hashes; `artifacts`: file name -> SHA-256; `peak_bytes`: the largest resident memory while
    it ran; `machine`: the command and the hardware that made it, empty in runs of older versions.
    """

    stage: str
    key: str
    depends: Mapping[str, Any]
    artifacts: Mapping[str, str]
    metrics: Mapping[str, float]
    seconds: float
    peak_bytes: int
    machine: Mapping[str, Any] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """The content of result.json; one without `machine` stays as an older version wrote it."""
        return {name: value for name, value in asdict(self).items() if name != "machine" or value}

    @property
    def digest(self) -> str:
        """Of what the stage produced, for the keys of the stages that read it."""
        return sha256_json({"artifacts": dict(self.artifacts), "metrics": dict(self.metrics)})


def versions_of(results: Iterable[Result]) -> dict[str, str]:
    """The libraries that made these results, each in the version of the first one that depends on it."""
    versions: dict[str, str] = {}
    for result in results:
        versions = {**result.depends["libraries"], **versions}
    return dict(sorted(versions.items()))


def file_of(variant: str) -> str:
    """The name of a variant's file: model.onnx, model.int8.onnx."""
    return MODEL if variant == FULL else f"model.{variant}.onnx"
