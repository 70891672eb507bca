"""Complete runs of tiny networks, made once for the tests that look at what a run leaves."""

import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from atopipe.pipeline.cli.main import main

MadeOnce = Callable[[str, Callable[[Path], None]], Path]

NET = """
from torch import nn

def net(num_classes):
    body = nn.Conv2d(3, 16, 3, stride=2, padding=1), nn.BatchNorm2d(16), nn.ReLU()
    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(256, num_classes))
"""
CONFIG = """
model: tiny_for_all:net
target_flops: 0.6
recipe: {epochs: 1, batch_size: 128, align: 1}
baseline: true
gates: {max_accuracy_drop: 1}
validation: {latency_s: 0.1}
threads: 1
device: cpu
"""
NET_WITH_VARIANTS = """
from torch import nn

def net(num_classes):
    body = nn.Conv2d(3, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1), nn.ReLU()
    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(512, num_classes))
"""
CONFIG_WITH_VARIANTS = """
model: tiny_with_variants:net
data: {source: digits, input_size: 8}
target_flops: 0.6
recipe: {epochs: 2, batch_size: 128, align: 1}
variants: fp32,fp16,int8
validation: {latency_s: 0.2}
threads: 1
device: cpu
"""


@pytest.fixture(scope="session")
def finished(made_once: MadeOnce) -> Path:
    """A folder with the network, its configuration, and the run in `out`."""
    return made_once("finished", lambda folder: complete(folder, "tiny_for_all", NET, CONFIG))


@pytest.fixture(scope="session")
def finished_with_variants(made_once: MadeOnce) -> Path:
    """The same of a network with variants."""
    fill = partial(complete, name="tiny_with_variants", net=NET_WITH_VARIANTS, config=CONFIG_WITH_VARIANTS)
    return made_once("variants", fill)


def complete(folder: Path, name: str, net: str, config: str) -> None:
    before, path = Path.cwd(), sys.path.copy()
    (folder / f"{name}.py").write_text(net)
    (folder / "config.yaml").write_text(config)
    os.chdir(folder)
    try:
        assert main(["run", "--config", "config.yaml", "--output", "out", "--quiet"]) == 0
    finally:
        os.chdir(before)
        sys.path[:] = path
