"""A teacher through whole commands: the run's own dense network, or a file; and what is refused of either."""

import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from atopipe.pipeline.cli.main import main
from atopipe.pipeline.config.load import FINETUNE, follows, load_config
from atopipe.pipeline.stages import stages_of
from atopipe.pipeline.system.errors import MissingError, UsageError

NET = """
from torch import nn

def net(num_classes):
    body = nn.Conv2d(3, 16, 3, stride=2, padding=1), nn.BatchNorm2d(16), nn.ReLU()
    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(256, num_classes))
"""
COMMAND = "train --model taught:net --target-flops 0.6 --epochs 2 --batch-size 128 --align 1 --threads 1 --device cpu"
GIVEN = {"model.name": "resnet18", "target_flops": 0.5}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    Path("taught.py").write_text(NET)
    return tmp_path


def trained(output: str, *more: str) -> dict[str, torch.Tensor]:
    assert main([*COMMAND.split(), "--no-preflight", "--output", output, *more]) == 0
    return load_file(f"{output}/stages/train/weights.safetensors")


def test_the_dense_network_of_a_run_teaches_as_the_same_network_from_a_file_does(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    taught = trained("own", "--baseline", "--teacher", "baseline")
    said = capsys.readouterr().out
    lines = ("\nbaseline ", "\nteacher baseline: 0.9 of the loss, temperature 2\n", "\ntrain ")
    places = [said.index(line) for line in lines]
    assert places == sorted(places)
    record = json.loads(Path("own/stages/train/result.json").read_text())
    assert "baseline" in record["depends"]["inputs"]
    from_file = trained("file", "--teacher", "own/stages/baseline/weights.safetensors")
    alone = trained("alone")
    assert all(torch.equal(tensor, from_file[name]) for name, tensor in taught.items())
    assert not all(torch.equal(tensor, alone[name]) for name, tensor in taught.items())
    assert "teacher" in json.loads(Path("file/stages/train/result.json").read_text())["depends"]["outside"]


def refused(capsys: pytest.CaptureFixture[str], *more: str) -> tuple[int, str]:
    code = main([*COMMAND.split(), "--no-preflight", "--output", "refused", "--quiet", *more])
    return code, capsys.readouterr().err


def test_a_teacher_that_cannot_teach_is_refused_before_the_first_epoch(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shapes = {"0.weight": (16, 3, 3, 3), "0.bias": (16,), "5.weight": (7, 256), "5.bias": (7,)}
    norm = {f"1.{name}": torch.ones(16) for name in ("weight", "bias", "running_mean", "running_var")}
    save_file({**{name: torch.zeros(shape) for name, shape in shapes.items()}, **norm}, "seven.safetensors")
    code, said = refused(capsys, "--teacher", "seven.safetensors")
    assert code == UsageError.exit_code
    assert said == (
        "atopipe: --teacher 'seven.safetensors' has a head for 7 classes, where the data have 10: "
        "give weights trained on these classes, or --teacher baseline\n"
    )
    code, said = refused(capsys, "--teacher", "default")
    assert code == UsageError.exit_code
    assert said == (
        "atopipe: --teacher 'default' is not a file, and 'taught:net' has no weights by name: "
        "give a file, or a model of torchvision or timm\n"
    )
    code, said = refused(capsys, "--teacher", "none.safetensors")
    assert (code, "--teacher 'none.safetensors'" in said) == (MissingError.exit_code, True)
    code, said = refused(capsys, "--teacher", "baseline")
    assert code == UsageError.exit_code
    assert said == "atopipe: --teacher baseline learns from the dense network: add --baseline to train it\n"
    assert not Path("refused/stages/train").exists()


def test_the_dense_network_is_trained_first_only_where_it_teaches() -> None:
    def names(**values: object) -> list[str]:
        return [stage.name for stage in stages_of(load_config(None, {**GIVEN, **values}))]

    assert names(baseline=True)[:2] == ["train", "baseline"]
    assert names(baseline=True, teacher="baseline")[:2] == ["baseline", "train"]
    assert names()[0] == "train"


def test_trained_weights_are_finetuned_without_being_asked(tmp_path: Path) -> None:
    weights = {"model.weights": "w.safetensors"}
    assert follows(load_config(None, {**GIVEN, **weights, "recipe.epochs": "3"}), FINETUNE)
    assert not follows(load_config(None, GIVEN), FINETUNE)
    assert load_config(None, {**GIVEN, **weights, "recipe": "quick"}).recipe == load_config(None, GIVEN).recipe
    file = tmp_path / "a.yaml"
    file.write_text("{model: {name: resnet18, weights: w.pt}, target_flops: 0.5, recipe: {epochs: 3}}")
    assert follows(load_config(file), FINETUNE)
    for recipe in ("quick", "finetune"):
        whole = load_config(None, {**GIVEN, **weights, "recipe": recipe})
        file.write_text(json.dumps(whole.resolved()))
        assert load_config(file) == whole


def test_a_run_from_before_a_setting_was_there_keeps_what_was_done_then(tmp_path: Path) -> None:
    whole = load_config(None, GIVEN).resolved()
    assert whole["recipe"].pop("statistics_images") > 0
    file = tmp_path / "config.yaml"
    file.write_text(json.dumps(whole))
    assert load_config(file).recipe.statistics_images == 0
