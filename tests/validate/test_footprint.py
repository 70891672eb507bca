"""What a model costs in a separate process, and that failures there are reported here."""

import re
from pathlib import Path

import pytest
import torch
from torch import nn

from atopipe.export.onnx import export_onnx
from atopipe.validate.footprint import measure_footprint
from atopipe.validate.session import SessionError, open_session


def test_the_memory_is_at_least_that_of_the_weights(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(768, 16384), nn.ReLU(), nn.Linear(16384, 4))  # 50 MB
    export_onnx(net.eval(), torch.zeros(1, 3, 16, 16), tmp_path / "model.onnx", metadata={})
    found = measure_footprint(tmp_path / "model.onnx")
    assert found.file_bytes == (tmp_path / "model.onnx").stat().st_size
    assert 50e6 < found.memory_bytes < 500e6
    assert found.load_ms > 0


@pytest.mark.parametrize("content", [None, b"no model"])
def test_what_is_wrong_with_the_file_is_told_as_if_it_were_opened_here(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "model.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SessionError) as here:
        open_session(path)
    with pytest.raises(SessionError, match=f"^{re.escape(str(here.value))}$"):
        measure_footprint(path)
