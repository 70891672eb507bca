"""The user's own functions, named on the command line as `your_pkg.mod:factory` or `path/to/file.py:factory`."""

import ast
import importlib
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

from atopipe.pipeline.system.errors import AtopipeError
from atopipe.pipeline.system.text import did_you_mean, reason

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


@dataclass(frozen=True)
class Place:
    """Where modules are looked for: in the folder `root`; with `package`, in that package only, which is `root`."""

    root: Path
    package: str = ""

    def files(self, module: str) -> Iterator[Path]:
        """The file of a module, and those of the packages around it, where they lie here."""
        parts = module.split(".")
        if self.package and parts.pop(0) != self.package:
            return
        if self.package:
            yield from _existing(self.root / "__init__.py")
        path = self.root
        for part in parts:
            path = path / part
            yield from _existing(path / "__init__.py", path.with_suffix(".py"))

    def package_of(self, file: Path) -> list[str]:
        """The names of the packages around a file, for what it imports relatively."""
        return [*filter(None, [self.package]), *file.relative_to(self.root).parent.parts]


def code_files(factory: str) -> dict[str, Path]:
    """Name -> file for all the code of `your_pkg.mod:factory` or `net.py:factory`; empty where it is not there.

    Followed are imports as they stand in the text, as far as they lead to the same folder or installed package.
    """
    module = factory.rpartition(":")[0]
    if module.endswith(".py"):
        file = Path(module).resolve()
        place, waiting = Place(file.parent), list(_existing(file))
    else:
        place = _place_of(module.partition(".")[0])
        waiting = list(place.files(module))
    found: set[Path] = set()
    while waiting:
        file = waiting.pop()
        if file not in found:
            found.add(file)
            waiting += [other for name in _imports(file, place) for other in place.files(name)]
    return {file.relative_to(place.root).as_posix(): file for file in sorted(found)}


def _existing(*files: Path) -> Iterator[Path]:
    yield from (file for file in files if file.is_file())


def _place_of(top: str) -> Place:
    """Where Python finds the outermost package of a name; beside it may be more, if that is the working directory."""
    add_working_directory()
    importlib.invalidate_caches()
    found = (finder.find_spec(top, None) for finder in sys.meta_path)  # what was imported before does not count
    here, spec = Path.cwd(), next(filter(None, found), None)
    folders = list(spec.submodule_search_locations or []) if spec else []
    if folders:
        package = Path(folders[0])
        return Place(here) if package.parent == here else Place(package, top)
    return Place(Path(spec.origin).parent if spec and spec.origin and spec.has_location else here)


def _imports(file: Path, place: Place) -> Iterator[str]:
    """Names that may be modules: `from a import b` may mean a.b."""
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError):  # importing it will say so
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = _absolute(node, place.package_of(file))
            yield from (".".join([*base, alias.name]) for alias in node.names)


def _absolute(node: ast.ImportFrom, package: list[str]) -> list[str]:
    parents = package[: len(package) - node.level + 1] if node.level else []
    return [*parents, *(node.module or "").split(".")] if node.module else parents
