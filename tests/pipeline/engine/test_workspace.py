"""What the stages share."""

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from atopipe.pipeline.config.load import load_config
from atopipe.pipeline.engine.workspace import Workspace
from atopipe.pipeline.models.inference import save_tensors
from atopipe.pipeline.report.terminal import QuietDisplay
from atopipe.pipeline.system.errors import DataError, MissingError


def workspace(values: Mapping[str, object]) -> Workspace:
    config = load_config(None, {"model.name": "resnet18", "target_flops": 0.3, "threads": 1, **values})
    return Workspace(config, QuietDisplay())


def test_sample_images_are_spread_over_the_validation_set() -> None:
    shared = workspace({})
    everything = torch.cat([images for images, _ in shared.data.val.batches(64, device="cpu")])
    torch.testing.assert_close(shared.images(5), everything[[0, 90, 180, 269, 359]], rtol=0, atol=0)
    torch.testing.assert_close(shared.images(1000), everything, rtol=0, atol=0)
    assert shared.example.shape == (1, *everything.shape[1:])


def test_a_new_model_depends_on_the_seed_alone() -> None:
    one, same, other = (workspace({"seed": seed}).new_model().state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["conv1.weight"], other["conv1.weight"])


def test_tied_and_strided_tensors_are_saved(tmp_path: Path) -> None:
    tied = torch.arange(6.0).view(2, 3)
    tensors = {"a": tied, "b": tied, "c": tied.T, "d": tied[1]}
    save_tensors(tmp_path / "t.safetensors", tensors)
    loaded = load_file(tmp_path / "t.safetensors")
    assert loaded.keys() == tensors.keys()
    assert all(torch.equal(loaded[name], tensors[name]) for name in tensors)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_number_format_is_announced_and_used(precision: str) -> None:
    said: list[str] = []
    shared = workspace({"recipe.precision": precision, "device": "cpu"})
    shared.display.say = said.append  # type: ignore[method-assign]
    execution = shared.execution(shared.new_model())
    assert f"device  cpu (threads: 1, {precision})" in said
    assert execution.precision is getattr(torch, precision)
    assert shared.conditions(execution)["precision"] == precision


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")
def test_a_gpu_that_is_not_there_is_missed() -> None:
    with pytest.raises(MissingError) as caught:
        _ = workspace({"device": "cuda"}).device
    assert str(caught.value) == "--device cuda: torch finds no CUDA GPU here: choose --device cpu, or repair the driver"


def test_threads_are_set_where_they_are_used_and_given_back() -> None:
    before = torch.get_num_threads()
    shared = workspace({"threads": before + 1})
    assert torch.get_num_threads() == before
    with suppress(KeyError), shared.limited_threads():
        assert torch.get_num_threads() == before + 1
        raise KeyError
    assert torch.get_num_threads() == before


def test_data_that_answer_otherwise_than_in_training_are_refused() -> None:
    config = load_config(None, {"model.name": "resnet18", "target_flops": 0.5, "data.source": "digits"})
    recorded = Workspace(config, QuietDisplay()).answer
    again, other = Workspace(config, QuietDisplay()), Workspace(config, QuietDisplay())
    again.trained_on, other.trained_on = recorded, {**recorded, "class names": list("9876543210")}
    assert len(again.data.labels) == 10
    with pytest.raises(DataError, match=r"^data 'digits' gives other class names than the network was trained with: "):
        _ = other.data
