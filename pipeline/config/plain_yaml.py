"""YAML of plain values: a key stands once, and a value is what it looks like, or refused.

YAML 1.1 reads 010 as 8, 1:30 as 90, `no` as false and 2024-01-01 as a date; Python and YAML 1.2 do not. What is
written in such a way is refused; numbers, true, false and null are read as Python reads them, and the rest is text.
"""

import re
from collections.abc import Callable
from typing import Any

import yaml

TAG = "tag:yaml.org,2002:"
MERGE, NULL = f"{TAG}merge", f"{TAG}null"
INTEGER = re.compile(r"[-+]?(0|[1-9][0-9]*)")
FLOAT = re.compile(r"[-+]?([0-9]+\.[0-9]*|\.[0-9]+|(0|[1-9][0-9]*)(?=[eE]))([eE][-+]?[0-9]+)?|[-+]?\.(inf|nan)", re.I)
TRUTH = {"true": True, "false": False}


class YamlValueError(ValueError):
    """A key that stands twice, or a value that could be read in two ways: `what` is wrong, and the `remedy`."""

    def __init__(self, what: str, remedy: str) -> None:
        super().__init__(what)
        self.what, self.remedy = what, remedy


class _Loader(yaml.SafeLoader):
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if key.tag != MERGE and isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    line = key.start_mark.line + 1
                    raise YamlValueError(f"the key '{key.value}' twice (line {line})", "leave one out")
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def plain_yaml(text: str) -> Any:
    """The content of a file; raises yaml.YAMLError, ValueError (YamlValueError) or RecursionError."""
    return yaml.load(text, _Loader)  # noqa: S506 (it is a SafeLoader)


def argument_value(text: str) -> Any:
    """The value of `NAME=VALUE` on the command line, all of it: no comments, anchors or tags; raises the same."""
    text = text.strip()
    if text[:1] in ("'", '"', "[", "{"):
        return plain_yaml(text)
    loader = _Loader("")
    tag = loader.resolve(yaml.ScalarNode, text, (True, False))  # type: ignore[no-untyped-call]
    return loader.construct_object(yaml.ScalarNode(tag, text))


def _strictly(kind: str, fits: Callable[[str], Any], value: Callable[[str], Any]) -> None:
    """Has scalars of this YAML type read by `value` where `fits`, and refused where YAML alone would read them so."""

    def construct(loader: _Loader, node: yaml.ScalarNode) -> Any:
        text = str(loader.construct_scalar(node))
        if fits(text):
            return value(text)
        where = f" (line {node.start_mark.line + 1})" if node.start_mark else ""
        read = "a date" if kind == "timestamp" else _read_by_yaml(loader, kind, node)
        raise YamlValueError(
            f"the value {text}{where}, which YAML reads as {read}", f"write it in another way, or as text: '{text}'"
        )

    _Loader.add_constructor(f"{TAG}{kind}", construct)


def _read_by_yaml(loader: _Loader, kind: str, node: yaml.ScalarNode) -> str:
    try:
        read = getattr(loader, f"construct_yaml_{kind}")(node)
    except (ValueError, KeyError):  # after a tag may stand anything
        return "something else"
    return str(read).lower() if isinstance(read, bool) else str(read)


_strictly("bool", lambda text: text.lower() in TRUTH, lambda text: TRUTH[text.lower()])
_strictly("int", INTEGER.fullmatch, int)
_strictly("float", FLOAT.fullmatch, lambda text: float(re.sub(r"\.(?=[in])", "", text.lower())))
_strictly("timestamp", lambda text: False, str)
_Loader.yaml_implicit_resolvers = {  # `=` is text
    first: [(tag, form) for tag, form in forms if tag != f"{TAG}value"]
    for first, forms in _Loader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    f"{TAG}float", re.compile(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)[eE][-+]?[0-9]+$"), list("-+.0123456789")
)
_Loader.add_implicit_resolver(NULL, re.compile(r"None$"), ["N"])
