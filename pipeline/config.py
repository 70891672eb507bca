"""The configuration of a run: one model per concern, from a YAML file, a recipe and command-line values.

Precedence: command line > environment (`ATOPIPE_*`) > file > defaults; a recipe named on the command line replaces the
recipe of the file. What passes here is complete and in range; what does not is refused in one sentence.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from atopipe.ato.recipe import Recipe
from atopipe.pipeline.errors import UsageError
from atopipe.pipeline.flags import TARGETS
from atopipe.pipeline.nearest import nearest_or_all
from atopipe.pipeline.refusals import sentence, unknown_keys

RECIPES = Path(__file__).parent / "recipes"
DEFAULT_RECIPE = "quick"

# Settings that leave a run the same run.
HOW_NOT_WHAT = frozenset({"baseline", "variants", "gates", "threads", "checkpoint_minutes", "preflight"})
FULL = "fp32"
VARIANTS = (FULL, "fp16", "int8")  # formats of the delivered files; the first one is always there
SHORTHAND: Mapping[str, str] = {"model": "name", "data": "source"}


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ModelSettings(Section):
    """`name`: what `build_model` knows, called with `args`. `weights`: a file to start from.

    `keep`, `only`: patterns of layers whose widths stay whole, or are the only ones that may not.
    """

    name: str
    args: dict[str, bool | int | float | str | None] = {}
    weights: str | None = None
    keep: tuple[str, ...] = ()
    only: tuple[str, ...] = ()


class DataSettings(Section):
    """`input_size`: pixels of the square input, chosen from the images if absent; `val_fraction`: if not split yet."""

    source: str = "digits"
    input_size: Annotated[int, Field(ge=8, le=4096)] | None = None
    val_fraction: float = Field(default=0.2, gt=0, lt=1)


class ValidationSettings(Section):
    """`latency_s`: seconds to spend on comparing latencies, and half as much again for every variant."""

    latency_s: float = Field(default=10.0, gt=0, le=3600)


Limit = Annotated[float, Field(gt=0)] | None


class GateSettings(Section):
    """What the delivered model must reach, on the bad end of the measurement's interval; None: reported, not demanded.

    `max_accuracy_drop`: top-1 below the dense network's, as a fraction; `min_speedup`: dense latency over shrunk;
    `max_size_mb`: of the ONNX file, in 1e6 bytes; `max_variant_drop`: top-1 of a variant below the ONNX file's.
    """

    max_accuracy_drop: Annotated[float, Field(ge=0, le=1)] | None = None
    min_accuracy: Annotated[float, Field(gt=0, le=1)] | None = None
    min_speedup: Limit = None
    max_latency_ms: Limit = None
    max_size_mb: Limit = None
    max_variant_drop: Annotated[float, Field(ge=0, le=1)] = 0.02


Target = Annotated[float, Field(gt=0, le=1)] | None


class Config(Section):
    """Everything a run depends on; at least one target. What is in `HOW_NOT_WHAT` does not change what a run delivers.

    `baseline`: train the dense network too, to compare with; `variants`: formats to try, fp32 included, a list or
    separated by commas; `gates`: what must be reached; `checkpoint_minutes`: at most so much training is lost.
    """

    model: ModelSettings
    target_flops: Target = None
    target_params: Target = None
    data: DataSettings = DataSettings()
    recipe: Recipe = Recipe()
    baseline: bool = False
    variants: tuple[Literal["fp32", "fp16", "int8"], ...] = ("fp32",)
    validation: ValidationSettings = ValidationSettings()
    gates: GateSettings = GateSettings()
    seed: int = Field(default=0, ge=0, lt=2**32)
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int | None = Field(default=None, ge=1, le=1024)
    checkpoint_minutes: float = Field(default=10.0, ge=0, le=1440)
    preflight: bool = True

    @field_validator("variants", mode="before")
    @classmethod
    def _split(cls, given: object) -> object:
        """Known variants in their own order, each once; what is unknown is left for the check that follows."""
        names = [name.strip() for name in given.split(",")] if isinstance(given, str) else given
        if not isinstance(names, list | tuple) or not {*VARIANTS} >= {*map(str, names)}:
            return names
        return tuple(name for name in VARIANTS if name in {FULL, *names})

    @property
    def targets(self) -> dict[str, float]:
        """Cost -> the fraction of the dense network's that may be kept; the costs of `atopipe.ato.resources.COSTS`."""
        given = {cost: getattr(self, name) for name, cost in TARGETS.items()}
        return {cost: target for cost, target in given.items() if target is not None}

    def resolved(self) -> dict[str, Any]:
        """Every value in plain types; `load_config` of it gives the same configuration."""
        return self.model_dump(mode="json")

    def identity(self) -> dict[str, Any]:
        """What makes two runs the same run."""
        return {key: value for key, value in self.resolved().items() if key not in HOW_NOT_WHAT}

    def slice_for(self, settings: Iterable[str]) -> dict[str, Any]:
        """The part of the configuration with these names: what a stage depends on."""
        resolved = self.resolved()
        return {name: resolved[name] for name in settings}


def load_config(file: Path | None = None, values: Mapping[str, object] | None = None) -> Config:
    """The validated configuration of `file`, overridden by `values` (dotted names; `recipe`: its name or file)."""
    return merged_config(read_yaml(file) if file else {}, values or {})


def merged_config(raw: Mapping[str, object], values: Mapping[str, object]) -> Config:
    """The validated configuration `raw`, overridden by `values`."""
    raw = {key: _expand(key, value) for key, value in raw.items()}
    given = dict(values)
    raw["recipe"] = _recipe(given.pop("recipe", None) or raw.get("recipe", DEFAULT_RECIPE))
    for name, value in given.items():
        raw = _merge(raw, _nested(name, value))
    return parse_config(raw)


def parse_arguments(pairs: Iterable[str]) -> dict[str, object]:
    """`width=64` -> {"width": 64}: values as YAML reads them."""
    arguments = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name.isidentifier():
            raise UsageError(f"--model-args is {pair}, but must be NAME=VALUE, e.g. '--model-args width=64'")
        arguments[name] = yaml.safe_load(value)
    return arguments


def parse_config(raw: Mapping[str, object]) -> Config:
    """`raw` as a `Config`; UsageError names an unknown key with the nearest known one, or a value with its range."""
    for name, known in unknown_keys(raw, Config):
        raise UsageError(f"unknown configuration key '{name}': {nearest_or_all(name.rpartition('.')[2], known)}")
    try:
        config = Config.model_validate(raw)
    except ValidationError as error:
        raise UsageError(sentence(error.errors()[0], Config)) from None
    if not config.targets:
        raise UsageError("--target-flops is missing: give it, e.g. '--target-flops 0.3'")
    if config.gates.max_accuracy_drop is not None and not config.baseline:
        raise UsageError("--max-accuracy-drop compares with the dense network's accuracy: add --baseline to train it")
    return config


def read_yaml(file: Path) -> dict[str, Any]:
    """The mapping in `file`, loaded safely."""
    try:
        raw = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"configuration file '{file}' cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: of characters, dates and numbers
        mark = getattr(error, "problem_mark", None)
        where = f" (line {mark.line + 1})" if mark else ""
        raise UsageError(f"configuration file '{file}' is no valid YAML{where}") from None
    if not isinstance(raw, dict) or not all(isinstance(key, str) for key in raw):
        raise UsageError(f"configuration file '{file}' must hold 'key: value' lines, e.g. 'target_flops: 0.3'")
    return raw


def recipe_names() -> tuple[str, ...]:
    return tuple(sorted(file.stem for file in RECIPES.glob("*.yaml")))


def _expand(key: str, value: object) -> object:
    """`model: resnet50` is short for `model: {name: resnet50}`."""
    return {SHORTHAND[key]: value} if key in SHORTHAND and isinstance(value, str) else value


def _recipe(chosen: object) -> object:
    """The settings of a recipe given by name, by file, or inline with a `base` it changes."""
    if isinstance(chosen, Mapping):
        inline = dict(chosen)
        return _merge(_named_recipe(str(inline.pop("base", DEFAULT_RECIPE))), inline)
    return _named_recipe(chosen) if isinstance(chosen, str) else chosen


def _named_recipe(name: str) -> dict[str, Any]:
    if name in recipe_names():
        return read_yaml(RECIPES / f"{name}.yaml")
    if name.endswith((".yaml", ".yml")):
        return read_yaml(Path(name))
    raise UsageError(f"unknown recipe '{name}': {nearest_or_all(name, recipe_names())}")


def _nested(name: str, value: object) -> dict[str, Any]:
    """`a.b`, value -> {"a": {"b": value}}."""
    head, _, rest = name.partition(".")
    return {head: _nested(rest, value) if rest else value}


def _merge(base: Mapping[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    both = {key: _merge(base[key], value) for key, value in change.items() if _are_mappings(base.get(key), value)}
    return {**base, **change, **both}


def _are_mappings(*values: object) -> bool:
    return all(isinstance(value, Mapping) for value in values)
