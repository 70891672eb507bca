"""Input nobody meant: whatever comes, there is one sentence and an exit code of the table, never a traceback.

pytest tests/faults/test_fuzz.py                                  # a few of each kind
pytest tests/faults/test_fuzz.py --hypothesis-profile soak        # 400 of each
"""

import io
import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from harness import EXIT_CODES, FORMATS, mutated, working_in
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn

from atopipe.ato.removal.structure import Structure, StructureError, cut_model
from atopipe.ato.snapshot import Snapshot
from atopipe.pipeline.cli.commands import cli
from atopipe.pipeline.cli.main import main
from atopipe.pipeline.data.load import load_data
from atopipe.pipeline.rundir.checkpoints import Checkpoints
from atopipe.pipeline.system.failures import Failure, explain
from atopipe.pipeline.system.signals import StopRequest

SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
)
PROFILE = settings.get_profile("soak" if settings.get_current_profile_name() == "soak" else "few")
SHARED = settings(PROFILE, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])


def outcome(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Runs a command; it may refuse in one line, or do what it was asked."""
    code = main(argv)
    said = capsys.readouterr().err
    assert code in EXIT_CODES, (argv, code, said)
    assert "Traceback" not in said
    if code == 2:
        assert said.splitlines()[-1].startswith("atopipe: ")


def paths(tree: object, before: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The place of every value in a nest of mappings and lists."""
    inner = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    return [before, *(path for key, value in inner for path in paths(value, (*before, key)))]


def replaced(tree: Any, path: tuple[Any, ...], value: object) -> Any:
    if not path:
        return value
    copy = dict(tree) if isinstance(tree, dict) else list(tree)
    copy[path[0]] = replaced(copy[path[0]], path[1:], value)
    return copy


@SHARED
@given(data=st.data())
def test_configurations(data: st.DataObject, original: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = yaml.safe_load((original / "out/config.yaml").read_text())
    path = data.draw(st.sampled_from(paths(whole)))
    text = yaml.safe_dump(replaced(whole, path, data.draw(VALUES)))
    if data.draw(st.booleans()):
        text = mutated(text.encode(), data.draw(st.randoms())).decode("latin-1")
    with working_in(original):
        Path("fuzzed.yaml").write_text(text, encoding="utf-8")
        outcome(["run", "--config", "fuzzed.yaml", "--output", "fuzzed", "--dry-run"], capsys)
        outcome(["why", "out"], capsys)


OPTIONS = sorted({opt for p in cli.commands["run"].params for opt in (*p.opts, *p.secondary_opts)} - {"--threads"})
WORDS = st.sampled_from(
    ("", "0", "-1", "0.5", "1e99", "nan", "inf", "true", "a=b", "x.yaml", "../x", "digits", "imagefolder:.", "cpu", "5")
)


@SHARED
@given(data=st.data())
def test_command_lines(data: st.DataObject, original: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = data.draw(st.sampled_from([*cli.commands, "runn", ""]))
    known = [opt for p in getattr(cli.commands.get(command), "params", []) for opt in p.opts if opt[:2] == "--"]
    text = st.text(st.characters(exclude_characters="\0", codec="utf-8"), max_size=8)  # C's strings end there
    part = st.sampled_from([*known, *OPTIONS]) | WORDS | text
    words = data.draw(st.lists(part, max_size=6))
    with working_in(original):
        harmless = {"run": ["--dry-run", "--output", "fuzzed"], "train": ["--model", "no such model"]}
        outcome([command, *words, *harmless.get(command, [])], capsys)


@SHARED
@given(data=st.data())
def test_structures(data: st.DataObject) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
    whole = {"kept": {"0": {"out": [0, 2, 5]}, "2": {"in": [0, 2, 5]}}}
    fuzzed = replaced(whole, data.draw(st.sampled_from(paths(whole))), data.draw(VALUES))
    text = json.dumps(fuzzed)
    if data.draw(st.booleans()):
        text = mutated(text.encode(), data.draw(st.randoms())).decode("latin-1")
    try:
        cut_model(model, Structure.from_json(text))
    except StructureError:
        return
    assert all(parameter.numel() <= 8 * 4 * 9 for parameter in model.parameters())


@SHARED
@given(draw=st.randoms(), which=st.sampled_from(["json", "safetensors"]))
def test_checkpoints(draw: random.Random, which: str, tmp_path: Path) -> None:
    def fresh() -> Checkpoints:
        return Checkpoints(tmp_path, "key", 0.0, StopRequest(), lambda line: None)

    def snapshot(step: int) -> Snapshot:
        return Snapshot({"w": torch.full((4,), float(step))}, {"trainer": {"steps": {"finished": step}}})

    keeper = fresh()
    for step in (1, 2):
        keeper.cost = 0.0
        keeper.after_step(f"phase {step}", lambda step=step: snapshot(step))  # type: ignore[misc]
    newest = max(tmp_path.glob(f"*.{which}"))
    before = newest.read_bytes()
    newest.write_bytes(mutated(before, draw))
    found = fresh().latest()
    assert found is not None
    step = found.values["trainer"]["steps"]["finished"]
    assert step == 1 or newest.read_bytes() == before
    assert torch.equal(found.tensors["w"], torch.full((4,), float(step)))


@SHARED
@given(draw=st.randoms(), kind=st.sampled_from(FORMATS))
@pytest.mark.filterwarnings("ignore")  # Pillow warns of what it mends
def test_images(draw: random.Random, kind: str, tmp_path: Path) -> None:
    picture = io.BytesIO()
    Image.radial_gradient("L").resize((16, 16)).convert("RGB").save(picture, kind)
    for part in ("train", "val"):
        for label in ("a", "b"):
            (tmp_path / part / label).mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (16, 16), "red" if label == "a" else "blue").save(tmp_path / part / label / "1.png")
    for old in (tmp_path / "train/a").glob("2.*"):
        old.unlink()
    (tmp_path / f"train/a/2.{kind.lower()}").write_bytes(mutated(picture.getvalue(), draw))
    failure = _loading(tmp_path)
    assert failure is None or failure.exit_code in EXIT_CODES


def _loading(folder: Path) -> Failure | None:
    """What is said of a folder of images that cannot be loaded; an error that nobody explains is raised."""
    try:
        load_data(f"imagefolder:{folder}", seed=0)
    except Exception as error:
        if (failure := explain(error)) is None:
            raise
        return failure
    return None


def test_what_is_fuzzed_is_good_before(original: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with working_in(original):
        assert main(["run", "--config", "out/config.yaml", "--output", "out", "--dry-run"]) == 0
    assert "is skipped: unchanged" in capsys.readouterr().out
