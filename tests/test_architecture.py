"""Who may import whom, and what stays unloaded until it is needed."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = ("pipeline", "ato", "export", "validate")
LEAVES = ("ato", "export", "validate")
FILES = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]

# Heavy or replaceable libraries, and the only files that may import them.
CONFINED = {
    "torch_pruning": {"ato/dependencies.py"},
    "onnx": {"export/onnx.py", "export/nodes.py", "export/smallest.py"},
    "torch.onnx": {"export/onnx.py"},
    "onnxruntime": {"validate/session.py", "export/quantize.py", "pipeline/bundle/infer.py"},
    "onnxscript": {"export/onnx.py"},
    "mlflow": {"pipeline/tracking/mlflow.py"},
    "torch.utils.tensorboard": {"pipeline/tracking/tensorboard.py"},
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


def is_below(module: str, package: str) -> bool:
    return f"{module}.".startswith(f"{package}.")


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_leaves_know_neither_each_other_nor_the_pipeline(path: Path) -> None:
    folder = name_of(path).partition("/")[0]
    ours = {module.split(".")[1] for module in imports(path) if is_below(module, "atopipe")}
    assert folder == "pipeline" or ours <= {folder}


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
        "from atopipe.pipeline.cli import main\n"
        "assert main(['--help']) == 0\n"
        "light = set(sys.modules)\n"
        "import atopipe.pipeline.stages, atopipe.pipeline.config\n"
        f"print([name for name in {HEAVY} if name in sys.modules], 'pydantic' in light, 'rich' in light)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "[] False False"
