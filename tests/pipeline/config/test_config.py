"""The configuration: precedence, round trip, and one sentence for everything that is wrong with it."""

import math
import os
import re
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from atopipe.ato.recipe import ControllerSettings, PhaseSettings, WeightSettings
from atopipe.pipeline.config.load import load_config, parse_arguments, parse_config, recipe_names
from atopipe.pipeline.config.messages import _is_number, _sections
from atopipe.pipeline.config.schema import Config
from atopipe.pipeline.config.settings import FLAGS
from atopipe.pipeline.config.targets import Target
from atopipe.pipeline.system.errors import UsageError

GIVEN: dict[str, object] = {"model.name": "resnet50", "target_flops": 0.3}
FRACTION = "a fraction like 0.3 or 30% of the dense network's FLOPs, or an amount like 1.2G of FLOPs"


def write(path: Path, **content: Any) -> Path:
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


def test_values_override_the_file_which_overrides_defaults(tmp_path: Path) -> None:
    file = write(tmp_path / "a.yaml", model="resnet18", target_flops=0.5, seed=3, data={"val_fraction": 0.1})
    config = load_config(file, {"target_flops": "0.25", "data.source": "imagefolder:x"})
    assert (config.model.name, config.target_flops, config.seed) == ("resnet18", Target.parse(0.25), 3)
    assert (config.data.source, config.data.val_fraction, config.device) == ("imagefolder:x", 0.1, "auto")


def test_an_inline_recipe_changes_the_one_it_names(tmp_path: Path) -> None:
    recipe = {"base": "quick", "epochs": 3, "weights": {"learning_rate": 0.5}}
    plain = load_config(None, GIVEN).recipe
    changed = load_config(write(tmp_path / "a.yaml", recipe=recipe), GIVEN).recipe
    assert (changed.epochs, changed.weights.learning_rate) == (3, 0.5)
    assert (changed.batch_size, changed.weights.optimizer) == (plain.batch_size, plain.weights.optimizer)


def test_a_named_recipe_replaces_the_files_and_flags_change_it(tmp_path: Path) -> None:
    file = write(tmp_path / "a.yaml", recipe={"epochs": 3, "batch_size": 7})
    config = load_config(file, {**GIVEN, "recipe": "quick", "recipe.epochs": "5"})
    assert config.recipe.epochs == 5
    assert config.recipe.batch_size == load_config(None, GIVEN).recipe.batch_size != 7


@pytest.mark.parametrize("recipe", recipe_names())
def test_shipped_recipes_are_valid_and_survive_yaml(recipe: str) -> None:
    config = load_config(None, {**GIVEN, "recipe": recipe, "model.args": {"width": 2}})
    assert parse_config(yaml.safe_load(yaml.safe_dump(config.resolved()))) == config


def test_the_recipe_for_cifar_is_the_usual_one_and_the_rest_is_the_default() -> None:
    recipe = load_config(None, {**GIVEN, "recipe": "cifar"}).recipe
    assert recipe.weights == WeightSettings("sgd", 0.1, 0.0005, warmup=0.025, label_smoothing=0.0)
    assert (recipe.epochs, recipe.batch_size, recipe.phases) == (200, 128, PhaseSettings(search=0.25, decay=0.075))
    assert recipe.controller == ControllerSettings()


@pytest.mark.parametrize(
    ("given", "variants"),
    [
        ("fp32,fp16,int8", ("fp32", "fp16", "int8")),
        ("int8, fp16", ("fp32", "fp16", "int8")),
        (["int8", "int8"], ("fp32", "int8")),
        ("fp32", ("fp32",)),
        ([], ("fp32",)),
    ],
)
def test_variants_are_in_one_order_and_fp32_is_among_them(given: object, variants: tuple[str, ...]) -> None:
    config = load_config(None, {**GIVEN, "variants": given})
    assert config.variants == variants
    assert config.identity() == load_config(None, GIVEN).identity()


def test_threads_are_no_part_of_the_identity() -> None:
    one, two = (load_config(None, {**GIVEN, "threads": n}) for n in (1, 2))
    assert one.identity() == two.identity() != load_config(None, {**GIVEN, "seed": 1}).identity()


def test_a_slice_holds_what_was_asked_for() -> None:
    assert load_config(None, GIVEN).slice_for(("seed", "target_flops")) == {"seed": 0, "target_flops": 0.3}


@pytest.mark.parametrize(
    ("given", "value", "is_fraction", "written"),
    [
        (0.3, 0.3, True, "0.3"),
        ("30%", 0.3, True, "0.3"),
        (1, 1.0, True, "1"),
        ("5e-1", 0.5, True, "0.5"),
        ("1.2G", 1.2e9, False, "1.2G"),
        (" 300m ", 3e8, False, "300M"),
        ("0.5 T", 5e11, False, "0.5 T"),
        (4_000_000, 4e6, False, "4000000"),
    ],
)
def test_a_target_is_given_as_people_say_it(given: object, value: float, is_fraction: bool, written: str) -> None:
    config = load_config(None, {**GIVEN, "target_flops": given})
    target = config.targets["flops"]
    assert (target.value, target.is_fraction, target.written) == (value, is_fraction, written)
    assert target.limit(2e9) == (value * 2e9 if is_fraction else value)
    again = parse_config(yaml.safe_load(yaml.safe_dump(config.resolved())))
    assert (again, again.targets["flops"].written) == (config, written)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"target_flops": "30"}, f"--target-flops is 30, but must be {FRACTION}"),
        ({"target_flops": "130%"}, f"--target-flops is 130%, but must be {FRACTION}"),
        ({"target_flops": "1.2GB"}, f"--target-flops is 1.2GB, but must be {FRACTION}"),
        (
            {"target_params": "4 apples"},
            f"--target-params is 4 apples, but must be {FRACTION}".replace("FLOPs", "parameters").replace("1.2G", "4M"),
        ),
        ({"target_flops": "1.5"}, f"--target-flops is 1.5, but must be {FRACTION}"),
        ({"target_flops": 0}, f"--target-flops is 0, but must be {FRACTION}"),
        ({"target_flops": "-0.1"}, f"--target-flops is -0.1, but must be {FRACTION}"),
        ({"target_flops": float("nan")}, f"--target-flops is nan, but must be {FRACTION}"),
        ({"target_flops": "half"}, f"--target-flops is half, but must be {FRACTION}"),
        ({"recipe.epochs": "0"}, "--epochs is 0, but must be 1 or more"),
        ({"recipe.epochs": "many"}, "--epochs is many, but must be a whole number"),
        ({"recipe.batch_size": "1"}, "--batch-size is 1, but must be 2 or more"),
        ({"seed": "-1"}, "--seed is -1, but must be a whole number from 0 to 4294967295"),
        ({"recipe.precision": "fp16"}, "--precision is fp16, but must be 'auto', 'float32' or 'bfloat16'"),
        ({"recipe.live_shrink": "maybe"}, "--live-shrink is maybe, but must be true or false"),
        ({"device": "gpu"}, "--device is gpu, but must be 'auto', 'cpu' or 'cuda'"),
        ({"variants": "fp32,int4"}, "--variants is int4, but must be 'fp32', 'fp16' or 'int8'"),
        ({"variants": 8}, "--variants is 8, but must be a list of names like [fp32, int8]"),
        (
            {"gates.max_variant_drop": 2},
            "--max-variant-drop is 2, but must be a number from 0 to 1: 0.01 allows one point of top-1",
        ),
        ({"data.val_fraction": 1}, "data.val_fraction is 1, but must be a number between 0 and 1"),
        ({"recipe": "quikc"}, "unknown recipe 'quikc': did you mean quick?"),
        ({"sed": 1}, "unknown configuration key 'sed': did you mean seed?"),
        ({"data.sauce": 1}, "unknown configuration key 'data.sauce': did you mean source?"),
        (
            {"recipe.weights.learning_rat": 1},
            "unknown configuration key 'recipe.weights.learning_rat': did you mean learning_rate?",
        ),
        ({"recipe.weights.learning_rate": -1}, "recipe.weights.learning_rate is -1.0, but must be above 0"),
    ],
)
def test_what_is_wrong_is_said_in_one_sentence(values: dict[str, object], sentence: str) -> None:
    with pytest.raises(UsageError) as caught:
        load_config(None, GIVEN | values)
    assert str(caught.value) == sentence


def test_what_is_missing_is_said() -> None:
    with pytest.raises(UsageError, match=r"^--model is missing: give it, e.g. '--model resnet50'$"):
        load_config(None, {"target_flops": 0.3})
    with pytest.raises(UsageError, match=r"^--target-flops is missing: give it, e.g. '--target-flops 0.3'$"):
        load_config(None, {"model.name": "resnet50"})


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("model: [", "configuration file '{file}' is not valid YAML (line 1)"),
        ("- a\n- b\n", "configuration file '{file}' must hold 'key: value' lines, e.g. 'target_flops: 0.3'"),
        ("!!python/object/apply:os.system ['true']", "configuration file '{file}' is not valid YAML (line 1)"),
        ("", "configuration file '{file}' must hold 'key: value' lines, e.g. 'target_flops: 0.3'"),
        ("model: 5\ntarget_flops: 0.3\n", "--model is 5, but must be a name, or a section of 'key: value' lines"),
        (
            "model: a\ntarget_flops: 1\nrecipe: 5\n",
            "--recipe is 5, but must be a name, or a section of 'key: value' lines",
        ),
    ],
)
def test_a_broken_file_is_refused(tmp_path: Path, text: str, sentence: str) -> None:
    file = tmp_path / "broken.yaml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(UsageError) as caught:
        load_config(file, {"data.source": "digits"})
    assert str(caught.value) == sentence.format(file=file)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"none\.yaml' cannot be read: No such file or directory$"):
        load_config(tmp_path / "none.yaml")


def test_the_configuration_cannot_be_changed() -> None:
    config: Config = load_config(None, GIVEN)
    with pytest.raises(ValueError, match="frozen"):
        config.seed = 1  # type: ignore[misc]


NO_YAML = ("width=[1", "width={a", "width='x", 'width="a" b')


AMBIGUOUS = {  # what YAML 1.1 makes of it
    "010": "8",
    "00": "0",
    "0x10": "16",
    "0b11": "3",
    "1_000": "1000",
    "1_0.5": "10.5",
    "1:30": "90",
    "1:30:00": "5400",
    "12:34.5": "754.5",
    "yes": "true",
    "No": "false",
    "on": "true",
    "OFF": "false",
    "2024-01-01": "a date",
    "2024-99-99": "a date",
    "2024-01-01 10:00:00": "a date",
}


@pytest.mark.parametrize(("text", "read"), AMBIGUOUS.items())
def test_a_value_that_yaml_reads_as_something_else_is_refused(text: str, read: str, tmp_path: Path) -> None:
    words = f"has the value {text}, which YAML reads as {read}: write it in another way, or as text"
    with pytest.raises(UsageError) as caught:
        parse_arguments([f"width={text}"])
    assert str(caught.value) == f"--model-args width {words}: 'width=\"{text}\"'"
    file = tmp_path / "run.yaml"
    for line in (f"seed: {text}", f"model: {{name: resnet18, args: {{width: {text}}}}}", f"!!str a: {text}"):
        file.write_text(f"target_flops: 0.3\n{line}\n")
        with pytest.raises(UsageError) as caught:
            load_config(file)
        told = words.replace(f"value {text}", f"value {text} (line 2)")
        assert str(caught.value) == f"configuration file '{file}' {told}: '{text}'"


AS_WRITTEN = {
    "64": 64,
    "-5": -5,
    "+5": 5,
    "0": 0,
    "1e3": 1000.0,
    "1E-3": 0.001,
    ".5": 0.5,
    "5.": 5.0,
    "1.5e3": 1500.0,
    "true": True,
    "False": False,
    "None": None,
    "null": None,
    "~": None,
    "08": "08",
    "nan": "nan",
    "=": "=",
    "relu": "relu",
    "'010'": "010",
    '"no"': "no",
}


@pytest.mark.parametrize(("text", "value"), AS_WRITTEN.items())
def test_values_are_what_they_look_like(text: str, value: object, tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(f"target_flops: 0.3\nmodel: {{name: resnet18, args: {{width: {text}}}}}\n")
    for found in (parse_arguments([f"width={text}"])["width"], load_config(file).model.args["width"]):
        assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize("text", ["#fff", "a #b", "&a b", "!!int 010", "*a", "a: b", "- a", "%a", "@a"])
def test_an_argument_is_all_of_what_was_typed(text: str) -> None:
    assert parse_arguments([f"width={text}"]) == {"width": text}


@pytest.mark.parametrize("pair", ["width=", "width=  "])
def test_an_empty_argument_is_refused(pair: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_arguments([pair])
    assert str(caught.value) == "--model-args width is empty: give a value, null or 'width=\"\"'"


def numbers(schema: type, prefix: str = "") -> Iterator[str]:
    """The dotted names of all settings that are numbers."""
    for name, section in _sections(schema).items():
        if section is not None:
            yield from numbers(section, f"{prefix}{name}.")
        elif _is_number(typing.get_type_hints(schema)[name]):
            yield f"{prefix}{name}"


NUMBERS = sorted(numbers(Config))


def test_all_numbers_are_found() -> None:
    some = {"seed", "gates.min_speedup", "validation.latency_s", "recipe.epochs", "recipe.weights.learning_rate"}
    assert some < set(NUMBERS)
    assert len(NUMBERS) > 40


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "1e400", math.nan, math.inf, -math.inf])
def test_every_number_is_finite(name: str, value: object) -> None:
    with pytest.raises(UsageError) as caught:
        load_config(None, {**GIVEN, name: value})
    words = f"{FLAGS.get(name, name)} is {value}, but must be "
    assert str(caught.value).startswith(words)


@pytest.mark.parametrize("pair", NO_YAML)
def test_model_arguments_that_are_no_yaml_are_refused(pair: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_arguments([pair])
    assert str(caught.value).startswith(f"--model-args is {pair}, whose value is not valid YAML: ")


@pytest.mark.parametrize("role", ["config", "recipe"])
@pytest.mark.parametrize("name", ["pipe.yaml", "folder.yaml"])
def test_a_pipe_or_a_folder_is_no_configuration(tmp_path: Path, role: str, name: str) -> None:
    os.mkfifo(tmp_path / "pipe.yaml")
    (tmp_path / "folder.yaml").mkdir()
    file, values = (tmp_path / name, {}) if role == "config" else (None, {**GIVEN, "recipe": str(tmp_path / name)})
    with pytest.raises(UsageError, match=r"is not a file: give a YAML file$"):
        load_config(file, values)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("model: resnet18\ntarget_flops: .3\ntarget_flops: .9\n", "the key 'target_flops' twice (line 3)"),
        ("model: {name: resnet18, args: {a: 1, a: 2}}\ntarget_flops: .3\n", "the key 'a' twice (line 1)"),
        ("model: resnet18\ntarget_flops: .3\ngates:\n  min_accuracy: .99\n  min_accuracy: .01\n", "(line 5)"),
    ],
)
def test_a_key_that_stands_twice_is_refused(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "run.yaml").write_text(text)
    with pytest.raises(UsageError, match=re.escape(said)):
        load_config(tmp_path / "run.yaml")


def test_an_argument_that_is_given_twice_is_refused() -> None:
    with pytest.raises(UsageError, match="--model-args gives width twice, as 1 and as 2"):
        parse_arguments(["width=1", "width=2"])


def test_arguments_are_numbers_and_nothing_as_python_writes_them() -> None:
    given = parse_arguments(["a=1e-3", "b=None", "c=0.5", "d=Nonesuch", "e=2E5"])
    assert given == {"a": 1e-3, "b": None, "c": 0.5, "d": "Nonesuch", "e": 2e5}


@pytest.mark.parametrize(
    "name", ["model.name", "model.weights", "data.source", "latency_table", "recipe", "target_flops", "teacher"]
)
def test_an_empty_value_is_not_taken_for_the_default(name: str) -> None:
    """An option with a variable of the shell that is not set."""
    with pytest.raises(UsageError, match=r"is empty|is , but must|unknown recipe ''"):
        load_config(None, {"model.name": "resnet18", "target_flops": 0.5, name: ""})


@pytest.mark.parametrize("name", ["seed", "recipe.epochs", "recipe.align", "threads", "recipe.weights.ema"])
def test_true_is_not_taken_for_one(name: str) -> None:
    with pytest.raises(UsageError, match="is true, but must be"):
        load_config(None, {"model.name": "resnet18", "target_flops": 0.5, name: True})


def test_a_kind_of_argument_that_is_refused_is_told_all_kinds() -> None:
    with pytest.raises(UsageError, match="--model-args is list, but must be numbers, text, true, false or null"):
        load_config(None, {"model.name": "resnet18", "target_flops": 0.5, "model.args": {"a": [1]}})
