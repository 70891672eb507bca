"""Networks for small images, around 32x32: the usual benchmarks on CIFAR-10 and CIFAR-100.

`resnet20` to `resnet110` are those of He et al. 2016 ("Deep Residual Learning for Image Recognition", section 4.2). The
`cifar_` networks are the ImageNet ones with fewer strides, so that enough of a small image reaches the deep layers.
"""

from collections import OrderedDict
from collections.abc import Callable, Mapping
from functools import partial
from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

Builder = Callable[..., nn.Module]

RESNET_WIDTHS = (16, 32, 64)
VGG16 = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))  # a pooling after each part


class PaddedShortcut(nn.Module):
    """The parameter-free shortcut ("option A"): every second pixel, and zeros for the channels that are missing.

    Its channels have fixed places, so that the streams it joins cannot be pruned; what lies inside the blocks can.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.missing = outputs - inputs
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        before = self.missing // 2
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, before, self.missing - before))


def projection_shortcut(inputs: int, outputs: int, stride: int) -> nn.Module:
    """A 1x1 convolution with batch normalisation ("option B"): all streams can be pruned."""
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))


SHORTCUTS: Mapping[str, Callable[[int, int, int], nn.Module]] = {
    "projection": projection_shortcut,
    "padded": PaddedShortcut,
}


class BasicBlock(nn.Module):
    """relu(shortcut(x) + bn(conv(relu(bn(conv(x)))))), with 3x3 convolutions."""

    def __init__(self, inputs: int, outputs: int, stride: int, shortcut: nn.Module) -> None:
        super().__init__()
        self.conv1 = _conv3x3(inputs, outputs, stride)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = _conv3x3(outputs, outputs)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        inner = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.shortcut(x) + self.bn2(self.conv2(inner)))


def cifar_resnet(depth: int, num_classes: int = 10, shortcut: str = "projection") -> nn.Module:
    """The ResNet of 6 n + 2 = `depth` layers; `shortcut` is a key of SHORTCUTS and joins streams of unequal width.

    Raises ValueError for another depth or shortcut.
    """
    blocks, rest = divmod(depth - 2, 6)
    if rest or blocks < 1:
        raise ValueError(f"a CIFAR ResNet has 6 n + 2 layers, not {depth}")
    if shortcut not in SHORTCUTS:
        raise ValueError(f"shortcut '{shortcut}' is unknown: use {' or '.join(SHORTCUTS)}")
    first, last = RESNET_WIDTHS[0], RESNET_WIDTHS[-1]
    parts: dict[str, nn.Module] = {"stem": nn.Sequential(_conv3x3(3, first), nn.BatchNorm2d(first), nn.ReLU())}
    for number, (inputs, width) in enumerate(pairwise((first, *RESNET_WIDTHS)), start=1):
        parts[f"stage{number}"] = _stage(inputs, width, blocks, SHORTCUTS[shortcut])
    return _with_classifier(parts, last, num_classes)


def _stage(inputs: int, width: int, blocks: int, shortcut: Callable[[int, int, int], nn.Module]) -> nn.Module:
    first_shortcut = nn.Identity() if inputs == width else shortcut(inputs, width, 2)
    first = BasicBlock(inputs, width, 1 if inputs == width else 2, first_shortcut)
    return nn.Sequential(first, *(BasicBlock(width, width, 1, nn.Identity()) for _ in range(blocks - 1)))


def cifar_vgg16_bn(num_classes: int = 10) -> nn.Module:
    """The 13 convolutions of VGG-16, each with batch normalisation, and one linear layer."""
    layers: list[nn.Module] = []
    inputs = 3
    for widths in VGG16:
        for width in widths:
            layers += [_conv3x3(inputs, width), nn.BatchNorm2d(width), nn.ReLU()]
            inputs = width
        layers.append(nn.MaxPool2d(2))
    return _with_classifier({"features": nn.Sequential(*layers)}, inputs, num_classes)


def small_stem_resnet(name: str, num_classes: int = 10, **args: object) -> nn.Module:
    """torchvision's ResNet `name` with a 3x3 convolution of stride 1 and no pooling at its start."""
    from torchvision import models

    model: nn.Module = models.get_model(name, weights=None, num_classes=num_classes, **args)
    model.conv1 = _initialised(_conv3x3(3, 64))
    model.maxpool = nn.Identity()
    return model


def cifar_mobilenet_v2(num_classes: int = 10, **args: object) -> nn.Module:
    """torchvision's MobileNetV2 without its first two strides: 32x32 pixels become 4x4."""
    from torchvision import models

    # Expansion, channels, blocks, stride: Sandler et al. 2018, table 2, with stride 1 for the 24 channels.
    stages = [
        [1, 16, 1, 1],
        [6, 24, 2, 1],
        [6, 32, 3, 2],
        [6, 64, 4, 2],
        [6, 96, 3, 1],
        [6, 160, 3, 2],
        [6, 320, 1, 1],
    ]
    model: nn.Module = models.mobilenet_v2(
        weights=None, num_classes=num_classes, inverted_residual_setting=stages, **args
    )
    stem = next(layer for layer in model.modules() if isinstance(layer, nn.Conv2d))
    stem.stride = (1, 1)
    return model


def _conv3x3(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)


def _with_classifier(parts: Mapping[str, nn.Module], inputs: int, num_classes: int) -> nn.Module:
    end = {"pool": nn.AdaptiveAvgPool2d(1), "flatten": nn.Flatten(), "classifier": nn.Linear(inputs, num_classes)}
    return _initialised(nn.Sequential(OrderedDict({**parts, **end})))


def _initialised(model: nn.Module) -> nn.Module:
    """Convolutions as in He et al. 2015, N(0, 2 / fan-out); the rest as torch does."""
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    return model


BUILDERS: Mapping[str, Builder] = {
    **{f"resnet{depth}": partial(cifar_resnet, depth) for depth in (20, 32, 44, 56, 110)},
    **{f"cifar_{name}": partial(small_stem_resnet, name) for name in ("resnet18", "resnet34", "resnet50")},
    "cifar_mobilenet_v2": cifar_mobilenet_v2,
    "cifar_vgg16_bn": cifar_vgg16_bn,
}
