"""Who may import whom, and what stays unloaded until it is needed."""

import ast
import graphlib
import subprocess
import sys
from collections.abc import Collection, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = ("pipeline", "ato", "export", "validate")
LEAVES = ("ato", "export", "validate")
# From the root to the leaves: a package imports only those behind it, and none beside it.
LAYERS: dict[str, tuple[tuple[str, ...], ...]] = {
    "pipeline": (
        ("cli",),
        ("sweep",),
        ("api",),
        ("stages",),
        ("engine",),
        ("report", "tracking"),
        ("rundir",),
        ("config", "data", "models"),
        ("system",),
    ),
    "ato": (
        ("training",),
        ("search",),
        ("discovery",),
        ("removal",),
        ("collectives", "execution", "groups", "layers", "recipe", "schedule", "snapshot"),
    ),
}
FILES = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]

# Heavy or replaceable libraries, and the only files that may import them.
CONFINED = {
    "torch_pruning": {"ato/discovery/dependencies.py"},
    "onnx": {"export/weightless.py", "export/onnx.py", "export/graph.py", "export/smoke_model.py"},
    "torch.onnx": {"export/onnx.py"},
    "onnxruntime": {
        "validate/session.py",
        "export/variants.py",
        "pipeline/stages/bundle/device/checks.py",
        "pipeline/stages/bundle/device/network.py",
        "pipeline/stages/profile/probe.py",
    },
    "onnxscript": {"export/onnx.py"},
    "mlflow": {"pipeline/tracking/mlflow.py"},
    "torch.utils.tensorboard": {"pipeline/tracking/tensorboard.py"},
    "ray": {"pipeline/sweep/executors/ray_core.py"},
    "pickle": set[str](),
}
HEAVY = (
    "torch",
    "numpy",
    "onnx",
    "onnxruntime",
    "sklearn",
    "torchvision",
    "torch_pruning",
    "scipy",
    "PIL",
    "safetensors",
    "jinja2",
)


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imports(path: Path) -> Iterator[str]:
    """Every module that `path` imports anywhere, those under TYPE_CHECKING included."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name_of(path)}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def module_of(path: Path) -> str:
    return "atopipe." + name_of(path).removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def file_behind(module: str, known: Collection[str]) -> str | None:
    """The file that an import of this name reads: the module, or the one it is defined in; None outside the house."""
    return next((name for name in (module, module.rpartition(".")[0]) if name in known), None)


def is_below(module: str, package: str) -> bool:
    return f"{module}.".startswith(f"{package}.")


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_leaves_know_neither_each_other_nor_the_pipeline(path: Path) -> None:
    folder = name_of(path).partition("/")[0]
    ours = {module.split(".")[1] for module in imports(path) if is_below(module, "atopipe")}
    assert folder == "pipeline" or ours <= {folder}


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_imports_go_down_the_layers_only(path: Path) -> None:
    folder, room = name_of(path).split("/")[:2]
    floors = {name: number for number, names in enumerate(LAYERS.get(folder, ())) for name in names}
    here = room.removesuffix(".py")
    if folder not in LAYERS or here.startswith("__"):
        return
    assert here in floors, f"{name_of(path)} has no place in LAYERS"
    for module in imports(path):
        there = module.split(".")[2] if is_below(module, f"atopipe.{folder}") else here
        both_are_files = room.endswith(".py") and (ROOT / folder / f"{there}.py").exists()
        allowed = there == here or floors[there] > floors[here] or (floors[there] == floors[here] and both_are_files)
        assert allowed, f"{name_of(path)} imports {module}, which stands above or beside it"


def test_no_file_imports_itself_by_way_of_others() -> None:
    known = {module_of(path) for path in FILES}
    read = {module_of(path): {file_behind(module, known) for module in imports(path)} - {None} for path in FILES}
    assert list(graphlib.TopologicalSorter(read).static_order())  # raises CycleError, which names the circle


def test_files_are_short_and_folders_small() -> None:
    lengths = {name_of(path): len(path.read_text(encoding="utf-8").splitlines()) for path in FILES}
    assert {name: length for name, length in lengths.items() if length > 300} == {}
    folders = {path.parent for path in FILES}
    names = {
        name_of(folder): sum(entry.name[0] not in "_." and entry.name != "py.typed" for entry in folder.iterdir())
        for folder in folders
    }
    assert {name: count for name, count in names.items() if count > 12} == {}


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_folders_are_imported_by_their_full_name(path: Path) -> None:
    assert not {module.partition(".")[0] for module in imports(path)} & set(FOLDERS)


@pytest.mark.parametrize("library", CONFINED)
def test_a_confined_library_is_imported_only_where_it_belongs(library: str) -> None:
    importers = {name_of(path) for path in FILES if any(is_below(module, library) for module in imports(path))}
    assert importers <= CONFINED[library]


def test_every_folder_is_typed() -> None:
    assert all((ROOT / folder / "py.typed").exists() for folder in FOLDERS)


def test_help_and_the_stage_list_load_no_heavy_library() -> None:
    code = (
        "import sys\n"
        "from atopipe.pipeline.cli.main import main\n"
        "assert main(['--help']) == 0\n"
        "light = set(sys.modules)\n"
        "import atopipe.pipeline.stages, atopipe.pipeline.config.load\n"
        f"print([name for name in {HEAVY} if name in sys.modules], 'pydantic' in light, 'rich' in light)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "[] False False"
