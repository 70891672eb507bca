"""The user's own functions, named on the command line as `your_pkg.mod:factory` or `path/to/file.py:factory`."""

import importlib
import inspect
import sys
from collections.abc import Callable, Mapping
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

from atopipe.pipeline.errors import AtopipeError
from atopipe.pipeline.nearest import did_you_mean

Factory = Callable[..., object]


def is_factory_name(name: str) -> bool:
    """Whether `name` is two names joined by a colon, the first one with dots or without, or a Python file."""
    module_name, _, attribute = name.rpartition(":")
    is_module = _is_file(module_name) or all(part.isidentifier() for part in module_name.split("."))
    return attribute.isidentifier() and is_module


def is_importable(module_name: str) -> bool:
    """Whether the outermost package of `module_name` is installed, or lies in the working directory."""
    if _is_file(module_name):
        return Path(module_name).is_file()
    add_working_directory()
    return find_spec(module_name.partition(".")[0]) is not None


def find_factory(who: str, name: str, returns: str, error: type[AtopipeError]) -> Factory:
    """The function `name`, for which `is_factory_name` holds, imported from the working directory too.

    Raises `error` with a sentence about `who`, whose function `returns` what is said there.
    """
    module_name, _, attribute = name.rpartition(":")
    module = (_run_file if _is_file(module_name) else _import)(who, module_name, error)
    found = getattr(module, attribute, None)
    if callable(found):
        return found  # type: ignore[no-any-return]  # callable() cannot tell what it returns
    functions = [name for name, value in vars(module).items() if callable(value)]
    hint = did_you_mean(attribute, functions) or f"name a function that returns {returns}"
    raise error(f"{who}: module '{module_name}' has no function '{attribute}': {hint}")


def accepted(factory: Factory, offers: Mapping[str, object]) -> dict[str, object]:
    """Those of the arguments that the function takes by name."""
    try:
        parameters = inspect.signature(factory).parameters
    except ValueError:  # written in C, without a signature
        return {}
    takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    return {name: value for name, value in offers.items() if takes_all or name in parameters}


def reason(error: Exception) -> str:
    """Kind and first line of what user code raised."""
    first_line = next(iter(str(error).splitlines()), "")
    return f"{type(error).__name__}: {first_line}" if first_line else type(error).__name__


def written(args: Mapping[str, object]) -> str:
    """The arguments of a call, for a message."""
    return ", ".join(f"{key}={value!r}" for key, value in args.items()) or "no arguments"


def _is_file(module_name: str) -> bool:
    return module_name.endswith(".py")


def _run_file(who: str, file: str, kind: type[AtopipeError]) -> ModuleType:
    """The module in a Python file, which may import its neighbours; a file is run once."""
    path = Path(file).resolve()
    if not path.is_file():
        raise kind(f"{who} does not import: there is no file '{file}'; give the path of a Python file")
    if str(path) in sys.modules:
        return sys.modules[str(path)]
    sys.path.insert(0, str(path.parent))
    spec = spec_from_file_location(str(path), path)
    if spec is None or spec.loader is None:
        raise kind(f"{who} does not import: '{file}' is no Python file; give the path of one")
    module = sys.modules[str(path)] = module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # user code may raise anything
        del sys.modules[str(path)]
        raise kind(f"{who} does not import: {reason(error)}; repair {file}") from error
    return module


def add_working_directory() -> None:
    """The user's modules are found there, as Python finds those beside a script."""
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)  # and left there: user code may import more when it is called


def _import(who: str, module_name: str, kind: type[AtopipeError]) -> ModuleType:
    add_working_directory()
    try:
        return importlib.import_module(module_name)
    except Exception as error:  # user code may raise anything
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if missing and f"{module_name}.".startswith(f"{missing}."):
            remedy = f"install it, or run where {missing.replace('.', '/')}.py lies"
            raise kind(f"{who} does not import: there is no module '{missing}'; {remedy}") from error
        raise kind(f"{who} does not import: {reason(error)}; repair {module_name}") from error
