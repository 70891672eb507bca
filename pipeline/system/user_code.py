"""The user's own functions, named on the command line as `your_pkg.mod:factory` or `path/to/file.py:factory`.

Their code is a guest: it sees an empty command line, what it prints goes to standard error, and the working directory
is put back, as are settings of the process that a run relies on. What it raises, sys.exit included, becomes an error of
that code.
"""

import importlib
import inspect
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

from atopipe.pipeline.system.code_files import code_files, importing_from
from atopipe.pipeline.system.errors import AtopipeError
from atopipe.pipeline.system.files import sha256_file
from atopipe.pipeline.system.process_state import preserved, random_state_preserved
from atopipe.pipeline.system.text import did_you_mean, reason

Factory = Callable[..., object]
# Libraries that are imported after the user's code has been, and that a file of the same name would take the place of.
LATER = ("onnx", "onnxruntime", "onnxscript", "scipy", "sklearn", "safetensors", "torch_pruning", "torchvision")

_imported: dict[str, dict[str, str]] = {}  # module -> digests of its files from just before it was imported


def is_factory_name(name: str) -> bool:
    """Whether `name` is two names joined by a colon, the first one with dots or without, or a Python file."""
    module_name, _, attribute = name.rpartition(":")
    is_module = _is_file(module_name) or all(part.isidentifier() for part in module_name.split("."))
    return attribute.isidentifier() and is_module


def is_importable(module_name: str) -> bool:
    """Whether the outermost package of `module_name` is installed, or lies in the working directory."""
    if _is_file(module_name):
        return Path(module_name).is_file()
    with importing_from(Path.cwd()):
        return find_spec(module_name.partition(".")[0]) is not None


def find_factory(who: str, name: str, returns: str, error: type[AtopipeError]) -> Factory:
    """The function `name`, for which `is_factory_name` holds, imported from the working directory too.

    Raises `error` with a sentence about `who`, whose function `returns` what is said there. The function runs as a
    guest each time it is called; SystemExit that it raises passes.
    """
    module_name, _, attribute = name.rpartition(":")
    folder = Path(module_name).resolve().parent if _is_file(module_name) else Path.cwd()
    module = _import(who, module_name, folder, error)
    found = getattr(module, attribute, None)
    if callable(found):
        return _as_guest(found, folder)
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


def first_accepted(factory: Factory, names: Sequence[str]) -> str | None:
    """The first of these names by which the function takes a number; the first of all if it takes any keyword."""
    try:
        parameters = inspect.signature(factory).parameters
    except ValueError:  # written in C, without a signature
        return None
    found = (name for name in names if name in parameters and _takes_a_number(parameters[name]))
    takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    return next(found, names[0] if takes_all else None)


def _takes_a_number(parameter: inspect.Parameter) -> bool:
    """By keyword, and not something else by the look of its default: `classes=("cat", "dog")`."""
    default = parameter.default
    is_open = default is parameter.empty or default is None
    by_keyword = parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    return by_keyword and (is_open or (isinstance(default, int) and not isinstance(default, bool)))


def _as_guest(factory: Factory, folder: Path) -> Factory:
    def guest(*args: object, **kwargs: object) -> object:
        with _hosting(folder):
            return factory(*args, **kwargs)

    guest.__wrapped__ = factory  # type: ignore[attr-defined]  # whose signature it is, for inspect
    return guest


@contextmanager
def _hosting(folder: Path) -> Iterator[None]:
    """While active, code from `folder` runs as a guest, and leaves no bytecode: that is told from new by the second."""
    arguments, here, bytecode = sys.argv, Path.cwd(), sys.dont_write_bytecode
    sys.argv, sys.dont_write_bytecode = ["atopipe"], True
    try:
        with preserved(), importing_from(folder), redirect_stdout(sys.stderr):
            yield
    finally:
        sys.argv, sys.dont_write_bytecode = arguments, bytecode
        os.chdir(here)


def _is_file(module_name: str) -> bool:
    return module_name.endswith(".py")


def _import(who: str, module_name: str, folder: Path, kind: type[AtopipeError]) -> ModuleType:
    """The module, imported once; raises `kind` where that fails, or where its code has changed since."""
    file = Path(module_name).resolve() if _is_file(module_name) else None
    if file is not None and not file.is_file():
        raise kind(f"{who} does not import: there is no file '{module_name}'; give the path of a Python file")
    name = _name_of(file) if file else module_name
    if name in sys.modules:
        _require_unchanged(who, _imported.get(name), _digests(module_name), kind)
        return sys.modules[name]
    _imported[name] = _digests(module_name)
    with _hosting(folder), random_state_preserved():
        module = _run_file(who, file, kind) if file else _import_by_name(who, module_name, kind)
    _require_no_shadow(who, folder, kind)
    return module


def _digests(module_name: str) -> dict[str, str]:
    """Of the files of a module; empty where they are not there."""
    return {name: sha256_file(path) for name, path in code_files(f"{module_name}:_").items()}


def _require_unchanged(
    who: str, imported: Mapping[str, str] | None, now: Mapping[str, str], kind: type[AtopipeError]
) -> None:
    """Raises `kind` where a module that Python still holds is not what its name leads to now."""
    changed = [name for name in {**now, **imported} if now.get(name) != imported.get(name)] if imported and now else []
    if changed:
        raise kind(f"{who}: '{changed[0]}' has changed since it was imported: restore it, or start Python again")


def _require_no_shadow(who: str, folder: Path, kind: type[AtopipeError]) -> None:
    for name in LATER:
        origin = getattr(sys.modules.get(name), "__file__", None)
        if origin and Path(origin).parent in (folder, folder / name):
            raise kind(f"{who}: '{origin}' was imported in the place of the library {name}: give it another name")


def _name_of(path: Path) -> str:
    """Of the module in a file: without dots, or a relative import would look for a package named as the folders."""
    return str(path).replace(".", "\u00b7")


def _run_file(who: str, path: Path, kind: type[AtopipeError]) -> ModuleType:
    """The module in a Python file, which may import its neighbours."""
    name = _name_of(path)
    spec = spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise kind(f"{who} does not import: '{path}' is not a Python file; give the path of one")
    module = sys.modules[name] = module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # user code may raise anything
        del sys.modules[name]
        raise kind(f"{who} does not import: {reason(error)}; {_remedy(error, str(path))}") from error
    return module


def _import_by_name(who: str, module_name: str, kind: type[AtopipeError]) -> ModuleType:
    try:
        return importlib.import_module(module_name)
    except (Exception, SystemExit) as error:  # user code may raise anything
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if missing and f"{module_name}.".startswith(f"{missing}."):
            remedy = f"install it, or run where {missing.replace('.', '/')}.py lies"
            raise kind(f"{who} does not import: there is no module '{missing}'; {remedy}") from error
        raise kind(f"{who} does not import: {reason(error)}; {_remedy(error, module_name)}") from error


def _remedy(error: BaseException, module_name: str) -> str:
    if isinstance(error, SystemExit):
        return f"move what {module_name} does as a program below if __name__ == '__main__'"
    if isinstance(error, ImportError) and "relative import" in str(error):
        return "import its neighbours by their names alone, or name the module as your_pkg.mod:factory"
    return f"repair {module_name}"
