"""Networks for small images: their known sizes and costs, and which of their channels can be removed."""

import pytest
import torch
from torch import nn

from atopipe.ato.discovery.find import find_groups
from atopipe.ato.groups import Groups
from atopipe.ato.search.cost import flops
from atopipe.pipeline.models.build import ModelError, build_model, model_names
from atopipe.pipeline.models.cifar import BUILDERS, cifar_resnet

EXAMPLE = torch.zeros(1, 3, 32, 32)

# Trainable parameters with ten classes, in the literature's millions where the exact number is not told.
PARAMETERS = {
    "resnet20": 272_474,
    "resnet32": 466_906,
    "resnet44": 661_338,
    "resnet56": 855_770,
    "resnet110": 1_730_714,
    "cifar_resnet18": 11_173_962,
    "cifar_resnet34": 21_282_122,
    "cifar_resnet50": 23_520_842,
    "cifar_vgg16_bn": 14_724_042,
    "cifar_mobilenet_v2": 2_236_682,
}
PADDED_PARAMETERS = {"resnet20": 269_722, "resnet56": 853_018, "resnet110": 1_727_962}

# Millions of multiply-accumulates of one 32x32 image, as papers on pruning give them.
MEGA_MACS = {"resnet20": 41, "resnet56": 127, "cifar_resnet18": 556, "cifar_vgg16_bn": 313, "cifar_mobilenet_v2": 88}


def groups_of(model: nn.Module) -> Groups:
    return find_groups(model, EXAMPLE, torch.Generator().manual_seed(0))


def on_meta(name: str, **args: object) -> nn.Module:
    """Shapes without values: initialising the large ones takes seconds."""
    with torch.device("meta"):
        return build_model(name, 10, args)


def test_every_network_is_found_by_its_name_next_to_torchvisions() -> None:
    assert set(PARAMETERS) == set(BUILDERS)
    assert {"resnet50", *BUILDERS} <= set(model_names())
    with pytest.raises(ModelError, match=r"^unknown model 'cifar_resnet19': did you mean cifar_resnet18, "):
        build_model("cifar_resnet19", 10)


@pytest.mark.parametrize(("name", "count"), PARAMETERS.items())
def test_parameters_are_as_many_as_published(name: str, count: int) -> None:
    assert sum(p.numel() for p in on_meta(name).parameters()) == count


@pytest.mark.parametrize(("name", "count"), PADDED_PARAMETERS.items())
def test_padded_shortcuts_have_no_parameters(name: str, count: int) -> None:
    assert sum(p.numel() for p in on_meta(name, shortcut="padded").parameters()) == count


@pytest.mark.parametrize(("name", "macs"), MEGA_MACS.items())
def test_cost_is_as_published(name: str, macs: int) -> None:
    model = build_model(name, 10)
    assert flops(model, Groups((), ()), EXAMPLE).dense / 2e6 == pytest.approx(macs, rel=0.01)


@pytest.mark.parametrize("name", BUILDERS)
def test_logits_are_as_many_as_classes_and_start_neither_dead_nor_exploded(name: str) -> None:
    torch.manual_seed(0)
    model = build_model(name, 100).train()
    with torch.no_grad():
        logits = model(torch.randn(8, 3, 32, 32))
    assert logits.shape == (8, 100)
    assert 0.02 < float(logits.std()) < 20


@pytest.mark.parametrize(("name", "channels"), [("cifar_resnet18", 512), ("cifar_mobilenet_v2", 1280)])
def test_fewer_strides_leave_a_map_of_the_image(name: str, channels: int) -> None:
    shapes: list[tuple[int, ...]] = []
    model = on_meta(name).eval()
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d):
            layer.register_forward_hook(lambda _, __, output: shapes.append(tuple(output.shape)))
    model(torch.empty(1, 3, 32, 32, device="meta"))
    assert shapes[0][2:] == (32, 32)
    assert shapes[-1][1:] == (channels, 4, 4)


def test_projection_shortcuts_leave_nothing_unprunable_but_the_output() -> None:
    groups = groups_of(build_model("resnet20", 10))
    assert [u.reason for u in groups.unprunable] == ["it is the network's output"]
    assert sorted(groups.sizes) == [16] * 4 + [32] * 4 + [64] * 4, "three blocks and one stream each"


def test_padded_shortcuts_leave_the_inside_of_the_blocks_prunable() -> None:
    groups = groups_of(build_model("resnet20", 10, {"shortcut": "padded"}))
    assert {s.name.rpartition(".")[2] for s in groups.sets} == {"conv1"}
    assert sorted(groups.sizes) == [16] * 3 + [32] * 3 + [64] * 3
    assert {"stage2.2.conv2", "stage3.2.conv2"} <= {u.name for u in groups.unprunable}  # the stream is not pruned


def test_every_width_of_vgg_is_prunable() -> None:
    assert len(groups_of(build_model("cifar_vgg16_bn", 10)).sets) == 13


def test_padded_shortcut_keeps_channels_in_the_middle_and_fills_with_zeros() -> None:
    shortcut = build_model("resnet20", 10, {"shortcut": "padded"}).get_submodule("stage2.0.shortcut")
    images = torch.randn(2, 16, 6, 6)
    output = shortcut(images)
    assert torch.equal(output[:, 8:24], images[:, :, ::2, ::2])
    assert float(output.abs().sum()) == pytest.approx(float(output[:, 8:24].abs().sum()))


def test_depth_and_shortcut_that_do_not_exist() -> None:
    with pytest.raises(ValueError, match=r"^a CIFAR ResNet has 6 n \+ 2 layers, not 21$"):
        cifar_resnet(21)
    with pytest.raises(ModelError) as caught:
        build_model("resnet20", 10, {"shortcut": "none"})
    assert str(caught.value) == (
        "model 'resnet20' cannot be built with shortcut='none', num_classes=10: "
        "ValueError: shortcut 'none' is unknown: use projection or padded"
    )
