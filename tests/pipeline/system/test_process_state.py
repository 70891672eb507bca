"""What a user's code sets for the whole process is put back, at import and at each call."""

import random
import signal
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from atopipe.pipeline.models.build import build_model

CHANGES = (
    "torch.set_default_dtype(torch.float64)",
    "torch.set_default_device('meta')",
    "torch.set_grad_enabled(False)",
    "torch.set_num_threads(3)",
    "torch.autograd.set_detect_anomaly(True)",
    "torch.use_deterministic_algorithms(True)",
    "torch.set_float32_matmul_precision('medium')",
    "numpy.seterr(all='raise')",
    "sys.setrecursionlimit(5000)",
    "sys.stdout = sys.stderr = None",
    "signal.signal(signal.SIGINT, signal.SIG_IGN)",
    "warnings.simplefilter('error', category=BytesWarning)",
)
HEAD = "import signal, sys, warnings\nimport numpy, torch\nfrom torch import nn\n"


def state() -> tuple[object, ...]:
    return (
        torch.get_default_dtype(),
        torch.get_default_device(),
        torch.is_grad_enabled(),
        torch.get_num_threads(),
        torch.is_anomaly_enabled(),
        torch.are_deterministic_algorithms_enabled(),
        torch.get_float32_matmul_precision(),
        tuple(np.geterr().items()),
        sys.getrecursionlimit(),
        sys.stdout,
        sys.stderr,
        signal.getsignal(signal.SIGINT),
        list(warnings.filters),
    )


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("when", ["imported", "called"])
def test_settings_of_the_process_are_put_back(tmp_path: Path, change: str, when: str) -> None:
    at_import, at_call = (change, "pass") if when == "imported" else ("", change)
    path = tmp_path / "net.py"
    path.write_text(f"{HEAD}{at_import}\ndef net(num_classes):\n    {at_call}\n    return nn.Sequential()\n")
    before = state()
    build_model(f"{path}:net", 4)
    assert state() == before


def test_an_import_leaves_the_random_state_as_it_was(tmp_path: Path) -> None:
    """Else the first network of a run would be another than the next one, for which nothing is imported."""
    path = tmp_path / "net.py"
    seeded = "import random\ntorch.manual_seed(7)\nnumpy.random.seed(7)\nrandom.seed(7)\n"
    path.write_text(f"{HEAD}{seeded}def net(num_classes):\n    return nn.Linear(3, num_classes)\n")
    weights = []
    for _ in range(2):
        torch.manual_seed(1)
        weights.append(build_model(f"{path}:net", 4).get_parameter("weight"))
    assert torch.equal(*weights)
    random.seed(3)
    drawn = random.random()
    random.seed(3)
    sys.modules.pop(str(path).replace(".", "\u00b7"))
    build_model(f"{path}:net", 4)
    assert random.random() == drawn
