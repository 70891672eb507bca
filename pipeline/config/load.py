"""The configuration of a run: one model per concern, from a YAML file, a recipe and command-line values.

Precedence: command line > environment (`ATOPIPE_*`) > file > defaults; a recipe named on the command line replaces the
recipe of the file. What passes here is complete and in range; what does not is refused in one sentence.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from atopipe.pipeline.config.messages import sentence, switched_numbers, unknown_keys
from atopipe.pipeline.config.plain_yaml import YamlValueError, argument_value, plain_yaml
from atopipe.pipeline.config.schema import BASELINE, Config
from atopipe.pipeline.system.errors import UsageError
from atopipe.pipeline.system.text import nearest_or_all

RECIPES = Path(__file__).parent / "recipes"
DEFAULT_RECIPE = "quick"
FINETUNE = "finetune"  # the default where there are weights to start from
WHOLE = {"weights", "phases", "controller", "projection"}  # a recipe that has them is a run's own: nothing is added


SHORTHAND: Mapping[str, str] = {"model": "name", "data": "source"}


def load_config(file: Path | None = None, values: Mapping[str, object] | None = None) -> Config:
    """The validated configuration of `file`, overridden by `values` (dotted names; `recipe`: its name or file).

    Raises UsageError where it names no target.
    """
    return with_target(merged_config(read_yaml(file) if file else {}, values or {}))


def with_target(config: Config) -> Config:
    """The configuration, which names a target; UsageError otherwise."""
    if not config.targets:
        raise UsageError("--target-flops is missing: give it, e.g. '--target-flops 0.3'")
    return config


def merged_config(raw: Mapping[str, object], values: Mapping[str, object]) -> Config:
    """The validated configuration `raw`, overridden by `values`."""
    raw = {key: _expand(key, value) for key, value in raw.items()}
    given = dict(values)
    raw["recipe"] = _recipe(given.pop("recipe", raw.get("recipe")), _default_recipe(raw, given))
    for name, value in given.items():
        raw = _merge(raw, _nested(name, value))
    return parse_config(raw)


def parse_arguments(pairs: Iterable[str]) -> dict[str, object]:
    """`width=64` -> {"width": 64}: values as Python has them."""
    arguments: dict[str, object] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name.isidentifier():
            raise UsageError(f"--model-args is {pair}, but must be NAME=VALUE, e.g. '--model-args width=64'")
        if not value.strip():
            raise UsageError(f"--model-args {name} is empty: give a value, null or '{name}=\"\"'")
        if name in arguments:
            raise UsageError(f"--model-args gives {name} twice, as {arguments[name]} and as {value}: leave one out")
        try:
            arguments[name] = argument_value(value)
        except YamlValueError as error:
            raise UsageError(
                f"--model-args {name} has {error.what}: write it in another way, or as text: '{name}=\"{value}\"'"
            ) from None
        except (yaml.YAMLError, ValueError, RecursionError):
            raise UsageError(
                f"--model-args is {pair}, whose value is not valid YAML: close its brackets and quotes, or put it "
                f"in quotes, e.g. --model-args '{name}=\"text\"'"
            ) from None
    return arguments


def parse_config(raw: Mapping[str, object]) -> Config:
    """`raw` as a `Config`; UsageError names an unknown key with the nearest known one, or a value with its range."""
    for name, known in unknown_keys(raw, Config):
        raise UsageError(f"unknown configuration key '{name}': {nearest_or_all(name.rpartition('.')[2], known)}")
    for message in switched_numbers(raw, Config):
        raise UsageError(message)
    try:
        config = Config.model_validate(raw)
    except ValidationError as error:
        raise UsageError(sentence(error.errors()[0], Config)) from None
    if config.teacher == BASELINE and not config.baseline:
        raise UsageError("--teacher baseline learns from the dense network: add --baseline to train it")
    _check_shared_search(config)
    limit = config.gates.max_accuracy_drop
    if limit is not None and limit < 1 and not config.baseline:
        raise UsageError("--max-accuracy-drop compares with the dense network's accuracy: add --baseline to train it")
    return config


def _check_shared_search(config: Config) -> None:
    """UsageError where the search does not pass the run's own targets, or the weights depend on it."""
    if config.shared_search is None:
        return
    shared, own, recipe = config.shared_search.targets, config.targets, config.recipe
    for cost, target in own.items():
        far = shared.get(cost)
        if far is None or (far.is_fraction == target.is_fraction and far.value > target.value):
            raise UsageError(
                f"shared_search.target_{cost} is {far.written if far else 'missing'}, but must be at most the run's "
                f"own target {target.written}: the search passes that on its way"
            )
    if recipe.search == "controller" and recipe.controller.anneal == 0:
        raise UsageError(
            "recipe.controller.anneal is 0, but must be above 0 to share a search: its limits have to pass every target"
        )
    if recipe.projection.search_lambda > 0:
        raise UsageError(
            f"recipe.projection.search_lambda is {recipe.projection.search_lambda:g}, but must be 0 to share a search: "
            "weights of other targets would shrink"
        )


def read_yaml(file: Path) -> dict[str, Any]:
    """The mapping in `file`, loaded safely."""
    try:
        if file.exists() and not file.is_file():  # a pipe would be waited for, a folder has no lines
            raise UsageError(f"configuration file '{file}' is not a file: give a YAML file")
        raw = plain_yaml(file.read_text(encoding="utf-8"))
    except YamlValueError as error:
        raise UsageError(f"configuration file '{file}' has {error.what}: {error.remedy}") from None
    except OSError as error:
        raise UsageError(f"configuration file '{file}' cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: of characters, dates and numbers
        mark = getattr(error, "problem_mark", None)
        where = f" (line {mark.line + 1})" if mark else ""
        raise UsageError(f"configuration file '{file}' is not valid YAML{where}") from None
    if not isinstance(raw, dict) or not all(isinstance(key, str) for key in raw):
        raise UsageError(f"configuration file '{file}' must hold 'key: value' lines, e.g. 'target_flops: 0.3'")
    return raw


def recipe_names() -> tuple[str, ...]:
    return tuple(sorted(file.stem for file in RECIPES.glob("*.yaml")))


def _expand(key: str, value: object) -> object:
    """`model: resnet50` is short for `model: {name: resnet50}`."""
    return {SHORTHAND[key]: value} if key in SHORTHAND and isinstance(value, str) else value


def _default_recipe(raw: Mapping[str, object], given: Mapping[str, object]) -> str:
    """The recipe that is taken, or changed, where none is named."""
    model = raw.get("model")
    starts = given.get("model.weights", model.get("weights") if isinstance(model, Mapping) else None)
    return DEFAULT_RECIPE if starts is None else FINETUNE


def _recipe(chosen: object, default: str) -> object:
    """The settings of a recipe given by name, by file, or inline with a `base` it changes; `default` where none is."""
    if isinstance(chosen, Mapping):
        inline = dict(chosen)
        if inline.keys() >= WHOLE and "base" not in inline:
            return inline
        return _merge(_named_recipe(str(inline.pop("base", default))), inline)
    return _named_recipe(default if chosen is None else chosen) if isinstance(chosen, str | None) else chosen


def follows(config: Config, recipe: str) -> bool:
    """Whether a run trains by this recipe, for however many epochs and with whatever batches."""
    named = {key: value for key, value in _named_recipe(recipe).items() if key not in ("epochs", "batch_size")}
    resolved = config.resolved()["recipe"]
    return bool(_merge(resolved, named) == resolved)


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
