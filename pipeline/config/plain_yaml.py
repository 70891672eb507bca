"""YAML of plain values, in which a key stands once: YAML itself would take the last of several, without a word."""

import re
from typing import Any

import yaml

MERGE = "tag:yaml.org,2002:merge"


class RepeatedKeyError(ValueError):
    """The message names the key and its line."""


class _Loader(yaml.SafeLoader):
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if key.tag != MERGE and isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise RepeatedKeyError(f"the key '{key.value}' twice (line {key.start_mark.line + 1})")
                seen.add(key.value)
        return super().construct_mapping(node, deep)


class _ArgumentLoader(_Loader):
    """Reads 1e-3 as a number and None as nothing, as Python does; YAML 1.1 takes both for text."""


_ArgumentLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+e[-+]?\d+$", re.I), list("-+0123456789")
)
_ArgumentLoader.add_implicit_resolver("tag:yaml.org,2002:null", re.compile(r"None$"), ["N"])


def plain_yaml(text: str) -> Any:
    """The content of a file; raises yaml.YAMLError, ValueError (RepeatedKeyError) or RecursionError."""
    return yaml.load(text, _Loader)  # noqa: S506 (it is a SafeLoader)


def argument_value(text: str) -> Any:
    """The value of `NAME=VALUE` on the command line; raises the same."""
    return yaml.load(text, _ArgumentLoader)  # noqa: S506 (it is a SafeLoader)
