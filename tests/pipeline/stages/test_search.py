"""A search that runs of other targets share: taking it over changes nothing but the time."""

import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from atopipe.pipeline.cli.main import main
from atopipe.pipeline.config.load import load_config
from atopipe.pipeline.rundir.events import read_events
from atopipe.pipeline.system.errors import UsageError
from atopipe.pipeline.system.files import sha256_file

NET = """
from torch import nn

def net(num_classes):
    body = nn.Conv2d(3, 16, 3, stride=2, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 24, 3), nn.ReLU()
    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(384, num_classes))
"""
CONFIG = """
model: tiny_for_search:net
target_flops: {own}
recipe: {{epochs: 2, batch_size: 64, align: 1}}
preflight: false
baseline: true
gates: {{max_accuracy_drop: 1}}
validation: {{latency_s: 0.1}}
threads: 1
device: cpu
"""
SHARED = "shared_search: {target_flops: 0.3}\n"


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with two runs: `tight` goes on to its own target, and `wide` took its search over."""
    folder, before, path = tmp_path_factory.mktemp("search"), Path.cwd(), sys.path.copy()
    (folder / "tiny_for_search.py").write_text(NET)
    (folder / "plain.yaml").write_text(CONFIG.format(own=0.3))
    (folder / "tight.yaml").write_text(CONFIG.format(own=0.3) + SHARED)
    (folder / "wide.yaml").write_text(CONFIG.format(own=0.7) + SHARED)
    os.chdir(folder)
    assert started("tight") == 0
    assert started("wide", "--reuse", "tight") == 0
    yield folder
    os.chdir(before)
    sys.path[:] = path


def started(name: str, *options: str, output: str = "") -> int:
    return main(["run", "--config", f"{name}.yaml", "--output", output or name, "--quiet", *options])


def model(run: str) -> str:
    return sha256_file(Path(run) / "stages/export/model.onnx")


def test_the_tightest_run_has_the_bytes_of_one_that_shares_nothing(work: Path) -> None:
    assert started("plain") == 0
    assert model("tight") == model("plain")


def test_a_run_that_searches_for_itself_has_the_bytes_of_one_that_took_the_search_over(work: Path) -> None:
    assert started("wide", output="alone") == 0
    assert model("wide") == model("alone")
    assert model("wide") != model("tight")


def test_what_is_taken_over_is_part_of_the_run(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    taken = [
        event["stage"] for event in read_events(work / "wide/events.jsonl") if event["event"] == "stage taken over"
    ]
    assert taken == ["baseline", "search"]
    assert main(["verify", "wide"]) == 0
    assert main(["why", "wide"]) == 0
    assert "has changed" not in capsys.readouterr().out
    history = json.loads((work / "wide/stages/train/history.json").read_text())
    assert [record["epoch"] for record in history] == [1, 2]
    metrics = json.loads((work / "wide/metrics.json").read_text())
    assert 0.3 < metrics["flops.ratio"] <= 0.7


def test_a_stage_that_would_come_out_otherwise_is_not_taken_over(work: Path) -> None:
    (work / "other.yaml").write_text(CONFIG.format(own=0.7) + SHARED + "seed: 1\n")
    assert started("other", "--reuse", "tight", "--until", "search") == 0
    assert not [e for e in read_events(work / "other/events.jsonl") if e["event"] == "stage taken over"]
    search = "stages/search/search.safetensors"
    assert sha256_file(work / "other" / search) != sha256_file(work / "tight" / search)


def test_a_changed_file_is_not_taken_over(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree("tight", "changed")
    Path("changed/stages/search/search.safetensors").write_bytes(b"other")
    assert started("wide", "--reuse", "changed", output="refused") == 5
    assert "has changed since stage search wrote it" in capsys.readouterr().err
    assert not Path("refused/stages/search").exists()


def test_reuse_of_what_is_no_run_is_refused(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert started("wide", "--reuse", "nowhere", output="refused") == 2
    assert "'nowhere' is not a run of atopipe" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"shared_search.target_flops": 0.6}, "shared_search.target_flops is 0.6, but must be at most"),
        ({"target_params": 0.5}, "shared_search.target_params is missing"),
        ({"shared_search.target_flop": 0.2}, "unknown configuration key 'shared_search.target_flop': did you mean"),
        ({"shared_search.target_flops": "much"}, "shared_search.target_flops is much, but must be a fraction"),
        ({"recipe.controller.anneal": 0}, "recipe.controller.anneal is 0"),
        ({"recipe.projection.search_lambda": 1.0}, "recipe.projection.search_lambda is 1"),
    ],
)
def test_a_search_that_cannot_be_shared_is_refused(values: dict[str, object], words: str) -> None:
    given = {"model.name": "resnet18", "target_flops": 0.5, "shared_search.target_flops": 0.2, **values}
    with pytest.raises(UsageError, match=words):
        load_config(None, given)
