"""One changed byte in a committed file: `verify` names it, and so does a run that would have used it."""

import random
from pathlib import Path

import pytest
from harness import committed, flip_bit, problems, working_in

from atopipe.pipeline.cli.main import main

FLIPS = 20


def unnoticed(folder: Path, name: str, draw: random.Random, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """Flips one bit of a file of the run in `out`, and says who did not notice; the file is put back."""
    path = folder / "out" / name
    before = path.read_bytes()
    flip_bit(path, draw)
    missed = [] if any(problem.startswith(f"{name}:") for problem in verified(folder)) else ["verify"]
    if name.startswith("stages/"):
        capsys.readouterr()
        code = main(["run", "--config", "config.yaml", "--output", "out", "--quiet"])
        said = capsys.readouterr().err
        missed += [] if code == 5 and f"'out/{name}'" in said else ["run"]
    path.write_bytes(before)
    return missed


def verified(folder: Path) -> list[str]:
    """The problems; a configuration that cannot be read any more is one itself."""
    from atopipe.pipeline.system.errors import UsageError

    try:
        return problems(folder / "out")
    except UsageError:
        return ["config.yaml: unreadable"]


def test_every_flip_is_noticed(finished_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    draw, names = random.Random(0), committed(finished_run / "out")
    with working_in(finished_run):
        found = {name: unnoticed(finished_run, name, draw, capsys) for name in draw.choices(names, k=FLIPS)}
        assert {name: missed for name, missed in found.items() if missed} == {}
        assert verified(finished_run) == []


@pytest.mark.parametrize("name", ["stages/train/weights.safetensors", "stages/export/model.onnx", "bundle.zip"])
@pytest.mark.parametrize("left", [0, 0.5], ids=["empty", "half"])
def test_every_truncation_is_noticed(finished_run: Path, name: str, left: float) -> None:
    path = finished_run / "out" / name
    path.write_bytes(path.read_bytes()[: int(left * path.stat().st_size)])
    with working_in(finished_run):
        assert verified(finished_run) == [f"{name}: changed"]
