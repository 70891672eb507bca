"""What is wrong with a configuration, as one sentence with the name, the value and the remedy."""

import dataclasses
import typing
from collections.abc import Iterable, Iterator, Mapping

from pydantic_core import ErrorDetails

from atopipe.pipeline.config.settings import FLAGS, SETTINGS, TARGETS
from atopipe.pipeline.config.targets import Target

PLAIN = {  # pydantic's words
    "a valid integer": "a whole number",
    "a valid boolean": "true or false",
    "a valid string": "text",
    "a valid tuple": "a list of names",
}


def unknown_keys(raw: Mapping[str, object], schema: type, prefix: str = "") -> Iterator[tuple[str, tuple[str, ...]]]:
    """Keys of `raw` that `schema` lacks, with those it has, sections included.

    Pydantic ignores unknown keys of standard dataclasses, and knows nothing of nearest names.
    """
    fields = _sections(schema)
    for key, value in raw.items():
        if key not in fields:
            yield f"{prefix}{key}", tuple(fields)
        elif (section := fields[key]) is not None and isinstance(value, Mapping):
            yield from unknown_keys(value, section, f"{prefix}{key}.")


def switched_numbers(raw: Mapping[str, object], schema: type, prefix: str = "") -> Iterator[str]:
    """A sentence for every number that is given as true or false, `epochs: yes`: pydantic would take it for 1 or 0."""
    hints = typing.get_type_hints(schema)
    for key, section in _sections(schema).items():
        value, path = raw.get(key), f"{prefix}{key}"
        if section is not None and isinstance(value, Mapping):
            yield from switched_numbers(value, section, f"{path}.")
        elif isinstance(value, bool) and _is_number(hints[key]):
            allowed = (SETTINGS[path].allowed() if path in SETTINGS else "") or "a number"
            yield f"{FLAGS.get(path, path)} is {str(value).lower()}, but must be {allowed}"


def _is_number(hint: object) -> bool:
    kinds = {*typing.get_args(hint), hint}
    return bool(kinds & {int, float}) and bool not in kinds


def _sections(schema: type) -> dict[str, type | None]:
    """Field name -> its own schema where the field is a section, else None."""
    return {
        name: next(filter(_is_section, (hint, *typing.get_args(hint))), None)  # a section may be absent
        for name, hint in typing.get_type_hints(schema).items()
        if not name.startswith(("_", "model_config"))
    }


def _is_section(hint: object) -> bool:
    """A target is a value, though it has fields."""
    is_model = isinstance(hint, type) and (dataclasses.is_dataclass(hint) or hasattr(hint, "model_fields"))
    return is_model and hint is not Target


def sentence(error: ErrorDetails, schema: type) -> str:
    """One sentence for what is wrong with a value: the option, the value, what is allowed."""
    path = _setting(error["loc"], schema)
    name = FLAGS.get(path, FLAGS.get(f"{path}.name", path))
    if error["type"] == "missing":
        example = {"--model": "--model resnet50"}.get(name, name)
        return f"{name} is missing: give it, e.g. '{example}'"
    if error["type"] == "string_too_short":
        return f"{name} is empty: give a value, or leave it out"
    if error["type"] == "value_error" and path.removeprefix("shared_search.") not in (*TARGETS, "data.normalize"):
        message = str(error["ctx"]["error"])
        key = "recipe." + message.split(" ", 1)[0]
        return f"{FLAGS.get(key, key)} {message.split(' ', 1)[1]}"
    wrong = error["input"]
    shown = wrong if isinstance(wrong, int | float | str) else type(wrong).__name__
    return f"{name} is {shown}, but must be {_allowed(path, error)}"


def _setting(location: Iterable[int | str], config: type) -> str:
    """The dotted name of a setting; what pydantic adds behind it (an index, a member of a union) is left out."""
    parts: list[str] = []
    schema: type | None = config
    for part in map(str, location):
        fields = _sections(schema) if schema else {}
        if part not in fields:
            break
        parts.append(part)
        schema = fields[part]
    return ".".join(parts)


def _allowed(path: str, error: ErrorDetails) -> str:
    if error["type"] == "literal_error":
        return str(error["ctx"]["expected"])
    if error["type"] in ("model_type", "dataclass_type"):
        return "a name, or a section of 'key: value' lines"
    expected = error["msg"].removeprefix("Input should be ").partition(",")[0]
    plain = PLAIN.get(expected, expected)
    return (SETTINGS[path].allowed() if path in SETTINGS else "") or plain
