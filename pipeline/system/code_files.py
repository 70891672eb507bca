"""Which files a function of the user's is made of: its module, and what that imports from beside it."""

import ast
import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path


@contextmanager
def importing_from(folder: Path) -> Iterator[None]:
    """While active, modules are looked for in this folder first; afterwards last, for what is imported later.

    Then a file of the user's named as a library hides it from the user's own code only.
    """
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        if str(folder) not in sys.path:
            sys.path.append(str(folder))


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
    here = Path.cwd()
    with importing_from(here):
        importlib.invalidate_caches()
        found = (finder.find_spec(top, None) for finder in sys.meta_path)  # what was imported before does not count
        spec = next(filter(None, found), None)
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
