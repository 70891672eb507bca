"""Complete runs of tiny networks, made once for the tests that look at what a run leaves."""

import os
import sys
from pathlib import Path

import pytest

from atopipe.pipeline.cli.main import main

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
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the network, its configuration, and the run in `out`."""
    return complete(tmp_path_factory.mktemp("finished"), "tiny_for_all", NET, CONFIG)


@pytest.fixture(scope="session")
def finished_with_variants(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same of a network with variants."""
    folder = tmp_path_factory.mktemp("variants")
    return complete(folder, "tiny_with_variants", NET_WITH_VARIANTS, CONFIG_WITH_VARIANTS)


def complete(folder: Path, name: str, net: str, config: str) -> Path:
    before, path = Path.cwd(), sys.path.copy()
    (folder / f"{name}.py").write_text(net)
    (folder / "config.yaml").write_text(config)
    os.chdir(folder)
    try:
        assert main(["run", "--config", "config.yaml", "--output", "out", "--quiet"]) == 0
    finally:
        os.chdir(before)
        sys.path[:] = path
    return folder
