"""One complete run of a tiny network, made once for the tests that look at what a run leaves."""

import os
import sys
from pathlib import Path

import pytest

from atopipe.pipeline import cli

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
validation: {latency_s: 0.1}
threads: 1
device: cpu
"""


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the network, its configuration, and the run in `out`."""
    folder, before, path = tmp_path_factory.mktemp("finished"), Path.cwd(), sys.path.copy()
    (folder / "tiny_for_all.py").write_text(NET)
    (folder / "config.yaml").write_text(CONFIG)
    os.chdir(folder)
    try:
        assert cli.main(["run", "--config", "config.yaml", "--output", "out", "--quiet"]) == 0
    finally:
        os.chdir(before)
        sys.path[:] = path
    return folder
