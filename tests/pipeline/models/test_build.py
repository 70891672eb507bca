"""Networks by name: what is built, and the exact words where nothing can be."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from atopipe.pipeline.models.build import ModelError, build_model, model_names
from atopipe.pipeline.system.errors import MissingError, UsageError

FACTORIES = """
import torch
from torch import nn

def net(num_classes, width=4):
    return nn.Sequential(nn.Flatten(), nn.Linear(12, width), nn.Linear(width, num_classes))

def fixed():
    return nn.Linear(12, 7)

def anything(**settings):
    return nn.Linear(12, settings["num_classes"])

def table(num_classes):
    return {"classes": num_classes}

def broken(num_classes):
    raise ValueError("no such width\\nin this universe")

number = 3
"""


@pytest.fixture
def user_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The name of a module in the working directory; import state is put back afterwards."""
    name = "user_networks_of_a_test"
    (tmp_path / f"{name}.py").write_text(FACTORIES)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield name
    sys.modules.pop(name, None)


def message_of(name: str, **args: object) -> str:
    with pytest.raises(ModelError) as caught:
        build_model(name, 10, args)
    assert isinstance(caught.value, UsageError)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_names_are_the_classification_builders_only() -> None:
    names = model_names()
    assert {"resnet50", "mobilenet_v2", "vit_b_16", "shufflenet_v2_x0_5"} <= set(names)
    assert not any(
        part in name for name in names for part in ("rcnn", "deeplab", "fcn", "raft", "r3d", "ssd", "retina")
    )
    assert list(names) == sorted(names)


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "squeezenet1_1"])
def test_network_has_the_wanted_number_of_logits(name: str) -> None:
    assert build_model(name, 7).eval()(torch.randn(2, 3, 64, 64)).shape == (2, 7)


def test_auxiliary_heads_are_off_so_that_training_gives_one_tensor() -> None:
    with torch.device("meta"):  # shapes are enough, and initialising these takes seconds
        images = torch.empty(2, 3, 299, 299)
        logits = [build_model(name, 3).train()(images) for name in ("googlenet", "inception_v3")]
    assert [tuple(output.shape) for output in logits] == [(2, 3), (2, 3)]


def test_weights_follow_torchs_seed() -> None:
    def weights(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return nn.utils.parameters_to_vector(build_model("squeezenet1_1", 10).parameters())

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


def test_arguments_reach_the_builder() -> None:
    model = build_model("resnet18", 10, {"zero_init_residual": True})
    assert all(not block.bn2.weight.any() for block in model.get_submodule("layer1").children())


def test_unknown_name_gets_the_nearest_names() -> None:
    assert message_of("resnet5") == "unknown model 'resnet5': did you mean resnet56, resnet50 or resnet152?"
    assert message_of("ResNet50").startswith("unknown model 'ResNet50': did you mean resnet50, ")


def test_name_like_no_other_gets_an_example() -> None:
    remedy = "give a torchvision classification model such as resnet50, or your_pkg.mod:factory"
    assert message_of("qqq") == f"unknown model 'qqq': {remedy}"


def test_builder_that_refuses_its_arguments_is_quoted() -> None:
    assert message_of("resnet18", colour="red") == (
        "model 'resnet18' cannot be built with colour='red', num_classes=10: "
        "TypeError: ResNet.__init__() got an unexpected keyword argument 'colour'"
    )


def test_factory_of_the_working_directory_is_called_with_its_arguments(user_module: str) -> None:
    model = build_model(f"{user_module}:net", 5, {"width": 6})
    assert [tuple(p.shape) for p in model.parameters()] == [(6, 12), (6,), (5, 6), (5,)]


@pytest.mark.parametrize(("factory", "logits"), [("fixed", 7), ("anything", 5)])
def test_factory_gets_the_number_of_classes_only_where_it_takes_it(user_module: str, factory: str, logits: int) -> None:
    assert build_model(f"{user_module}:{factory}", 5)(torch.zeros(1, 12)).shape == (1, logits)


def test_factory_that_cannot_be_used_is_named_with_the_remedy(user_module: str, tmp_path: Path) -> None:
    who = f"model factory '{user_module}"
    assert message_of(f"{user_module}:nett") == (
        f"{who}:nett': module '{user_module}' has no function 'nett': did you mean net?"
    )
    assert message_of(f"{user_module}:number") == (
        f"{who}:number': module '{user_module}' has no function 'number': "
        "name a function that returns a torch.nn.Module"
    )
    assert message_of(f"{user_module}:table") == f"{who}:table' returned dict: return a torch.nn.Module"
    assert message_of("builtins:dict") == "model factory 'builtins:dict' returned dict: return a torch.nn.Module"
    assert message_of(f"{user_module}:broken") == (
        f"{who}:broken' cannot be built with num_classes=10: ValueError: no such width"
    )
    assert message_of("no_such_package.nets:net") == (
        "model factory 'no_such_package.nets:net' does not import: there is no module 'no_such_package'; "
        "install it, or run where no_such_package.py lies"
    )
    (tmp_path / "half_written_net.py").write_text("import no_such_dependency")
    assert message_of("half_written_net:net") == (
        "model factory 'half_written_net:net' does not import: "
        "ModuleNotFoundError: No module named 'no_such_dependency'; repair half_written_net"
    )


@pytest.mark.parametrize("name", [":net", "module:", "module:a.b"])
def test_name_that_is_no_factory_name(name: str) -> None:
    remedy = "write it as your_pkg.mod:factory or net.py:factory"
    assert message_of(name) == f"model '{name}' is not a factory name: {remedy}"


def test_a_file_is_a_factorys_module_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "beside.py").write_text("WIDTH = 9")
    (tmp_path / "my net.py").write_text(f"from beside import WIDTH\n{FACTORIES}\nwide = lambda: nn.Linear(12, WIDTH)")
    monkeypatch.chdir(tmp_path.parent)
    for path in (f"{tmp_path.name}/my net.py", str(tmp_path / "my net.py")):
        assert build_model(f"{path}:wide", 5)(torch.zeros(1, 12)).shape == (1, 9)
    (tmp_path / "torn.py").write_text("1 +")
    assert message_of(f"{tmp_path}/torn.py:net").startswith(
        f"model factory '{tmp_path}/torn.py:net' does not import: SyntaxError: invalid syntax"
    )
    sys.modules.pop("beside")


def test_timm_is_asked_for_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(MissingError) as caught:
        build_model("timm/resnet18", 10)
    assert str(caught.value).startswith("model 'timm/resnet18' needs timm, which cannot be imported (")
    assert str(caught.value).endswith("): pip install 'atopipe[timm]'")


def test_models_of_timm_are_built_by_name() -> None:
    pytest.importorskip("timm")
    assert build_model("timm/convnext_atto", 7, {"drop_path_rate": 0.1}).eval()(torch.zeros(1, 3, 32, 32)).shape == (
        1,
        7,
    )
    assert message_of("timm/convnext_ato").startswith("unknown model 'timm/convnext_ato': did you mean convnext_atto")
