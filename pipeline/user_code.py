"""Which files the user's function comes from: its own, and what that imports from beside it. Nothing is run."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path


@dataclass(frozen=True)
class Place:
    """Where modules are looked for: in the folder `root`; with `package`, in that package of it only."""

    root: Path
    package: str | None = None

    def files(self, module: str) -> Iterator[Path]:
        """The file of a module, and those of the packages around it, where they lie here."""
        if self.package and module.partition(".")[0] != self.package:
            return
        path = self.root
        for part in module.split("."):
            path = path / part
            candidates = (path / "__init__.py", path.with_suffix(".py"))
            yield from (file for file in candidates if file.is_file())

    def module(self, file: Path) -> str:
        """The dotted name of a file's package, for what it imports relatively."""
        return ".".join(file.relative_to(self.root).parent.parts)


def code_files(factory: str) -> dict[str, Path]:
    """Name -> file for all the code of `your_pkg.mod:factory` or `net.py:factory`; empty where it is not there.

    Followed are imports as they stand in the text, as far as they lead to the same folder or installed package.
    """
    module = factory.rpartition(":")[0]
    if module.endswith(".py"):
        file = Path(module).resolve()
        place, first = Place(file.parent), [file] if file.is_file() else []
    else:
        place = _place_of(module.partition(".")[0])
        first = list(place.files(module))
    found: set[Path] = set()
    waiting = first
    while waiting:
        file = waiting.pop()
        if file not in found:
            found.add(file)
            waiting += [other for name in _imports(file, place) for other in place.files(name)]
    return {file.relative_to(place.root).as_posix(): file for file in sorted(found)}


def _place_of(top: str) -> Place:
    """The working directory if the module lies there, else where it is installed."""
    here = Place(Path.cwd())
    if any(here.files(top)) or (here.root / top).is_dir():
        return here
    spec = find_spec(top)
    if spec is None or spec.origin is None:
        return here
    origin = Path(spec.origin)
    return Place(origin.parents[1] if origin.name == "__init__.py" else origin.parent, top)


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
            base = _absolute(node, place.module(file))
            yield from (f"{base}.{alias.name}".strip(".") for alias in node.names)


def _absolute(node: ast.ImportFrom, package: str) -> str:
    parents = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
    return ".".join(filter(None, [*parents, node.module or ""]))
