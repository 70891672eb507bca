"""Packs of weightless networks: the graphs are those that real exports give, and a device times them without torch."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from torch import nn

from atopipe.ato.discovery.find import find_groups
from atopipe.ato.removal.shrink import shrink
from atopipe.export.onnx import export_onnx
from atopipe.pipeline.config.load import load_config
from atopipe.pipeline.config.schema import DeploymentSettings
from atopipe.pipeline.models.build import build_model
from atopipe.pipeline.stages.profile.measure import LatencyMeter
from atopipe.pipeline.stages.profile.pack import Architecture, random_widths, write_pack
from atopipe.pipeline.stages.profile.table import LatencyTable, check_table, read_table
from atopipe.pipeline.system.errors import MissingError, UsageError


def operations(content: bytes) -> list[str]:
    return [node.op_type for node in onnx.load_from_string(content).graph.node if node.op_type != "ConstantOfShape"]


def weight_shapes(content: bytes) -> dict[str, list[int]]:
    """Of every weight and bias, stored or made when the file is opened."""
    graph = onnx.load_from_string(content).graph
    stored = {tensor.name: tensor for tensor in graph.initializer}
    made = {
        node.output[0]: onnx.numpy_helper.to_array(stored[node.input[0]]).tolist()
        for node in graph.node
        if node.op_type == "ConstantOfShape"
    }
    return {name: list(tensor.dims) for name, tensor in stored.items() if tensor.data_type == 1} | made


def shifted(model: nn.Module) -> nn.Module:
    """Norm layers as training leaves them: none whose shift the exporter could leave out."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.bias)
    return model.eval()


def architecture(name: str, folder: Path) -> Architecture:
    torch.manual_seed(0)
    model, example = shifted(build_model(name, 4, {})), torch.zeros(1, 3, 32, 32)
    groups = find_groups(model, example, torch.Generator().manual_seed(0))
    export_onnx(model, example, folder / "dense.onnx", metadata={})
    return Architecture(model, groups, folder / "dense.onnx")


@pytest.mark.parametrize("name", ["resnet20", "shufflenet_v2_x0_5"])
def test_a_weightless_graph_is_that_of_a_real_export(name: str, tmp_path: Path) -> None:
    network, generator = architecture(name, tmp_path), torch.Generator().manual_seed(1)
    widths = random_widths(network.groups, 4, generator)
    pairs = zip(network.groups.sizes, widths, strict=True)
    mask = torch.cat([torch.randperm(size, generator=generator).lt(width).float() for size, width in pairs])
    small, _ = shrink(network.model, network.groups, mask)
    export_onnx(small, torch.zeros(1, 3, 32, 32), tmp_path / "real.onnx", metadata={})
    real, ours = (tmp_path / "real.onnx").read_bytes(), network.without_weights(widths)
    assert operations(ours) == operations(real)
    assert weight_shapes(ours) == weight_shapes(real)
    assert len(ours) < 60_000
    images = np.zeros((2, 3, 32, 32), np.float32)
    session = ort.InferenceSession(ours, providers=["CPUExecutionProvider"])
    assert session.run(None, {"images": images})[0].shape == (2, 4)

    (tmp_path / "without.onnx").write_bytes(network.without_weights(torch.tensor(network.groups.sizes).double()))
    again = Architecture(network.model, network.groups, tmp_path / "without.onnx")
    assert weight_shapes(again.without_weights(widths)) == weight_shapes(ours)


def test_a_device_times_every_layer_of_every_network(tmp_path: Path) -> None:
    network, pack = architecture("resnet20", tmp_path), tmp_path / "pack"
    pack.mkdir()
    said = write_pack(pack, network, torch.zeros(1, 3, 32, 32), align=4, generator=torch.Generator().manual_seed(0))
    for extra in said["networks"][4:]:  # four are enough to see
        (pack / extra["file"]).unlink()
    (pack / "pack.json").write_text(json.dumps({**said, "networks": said["networks"][:4]}))
    blocked = "import sys; sys.modules['torch'] = None; sys.argv[0] = 'probe.py'; "
    code = blocked + f"import runpy; runpy.run_path({str(pack / 'probe.py')!r}, run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", code, str(pack)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    table = json.loads((pack / "latency.json").read_text())
    layers = {name for name, module in network.model.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)}
    for timed in table["networks"]:
        assert set(timed["layers"]) == layers
        assert 0.2 < (sum(timed["layers"].values()) + timed["rest"]) / timed["ms"] < 5
    assert table["networks"][0]["ms"] > 0
    assert (table["pack"], table["threads"], table["batch"]) == (said["digest"], 1, 1)


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (lambda pack: (pack / "001.onnx").write_bytes(b"other"), "has changed: make the pack again"),
        (lambda pack: (pack / "pack.json").write_text("{"), "is no pack of networks"),
        (lambda pack: (pack / "pack.json").write_text('{"networks": [], "format": 9}'), "is a pack of another version"),
    ],
    ids=["changed", "cut off", "other version"],
)
def test_a_damaged_pack_is_one_sentence(harm, words: str, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "001.onnx").write_bytes(b"model")
    (tmp_path / "probe.py").write_bytes((Path(__file__).parents[3] / "pipeline/stages/profile/probe.py").read_bytes())
    harm(tmp_path)
    if not (tmp_path / "pack.json").exists():
        entry = {"file": "001.onnx", "sha256": "0" * 64, "widths": [1]}
        (tmp_path / "pack.json").write_text(json.dumps({"format": 1, "networks": [entry]}))
    command = [sys.executable, str(tmp_path / "probe.py"), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("probe.py: '")
    assert words in done.stderr
    assert done.stderr.count("\n") == 1


NETWORK = {"file": "000.onnx", "ms": 2.0, "layers": {"conv1": 1.0}, "rest": 0.5}
TABLE = {
    "format": 1,
    "pack": "0" * 64,
    "runtime": "1.20.0",
    "processor": "ARM Cortex-A76",
    "provider": "CPUExecutionProvider",
    "threads": 1,
    "batch": 1,
    "input": [3, 32, 32],
    "graph_level": "all",
    "seconds": 60.5,
    "networks": [NETWORK],
}


def test_a_table_is_read_back(tmp_path: Path) -> None:
    (tmp_path / "latency.json").write_text(json.dumps(TABLE))
    assert read_table(str(tmp_path / "latency.json")).model_dump() == TABLE


def test_a_table_that_is_not_there_names_what_writes_it(tmp_path: Path) -> None:
    with pytest.raises(MissingError) as caught:
        read_table(str(tmp_path / "latency.json"))
    assert str(caught.value) == (
        f"--latency-table '{tmp_path / 'latency.json'}' is not there: run 'python probe.py PACK' on the device, "
        "and copy it"
    )


@pytest.mark.parametrize(
    "content",
    [
        json.dumps(TABLE)[:-20],
        "[" * 100_000,
        json.dumps([TABLE]),
        json.dumps({**TABLE, "format": 2}),
        json.dumps({**TABLE, "format": True}),
        json.dumps({name: value for name, value in TABLE.items() if name != "networks"}),
        json.dumps({**TABLE, "networks": [{"file": "000.onnx", "ms": "fast", "layers": {}, "rest": 0}]}),
        json.dumps({**TABLE, "networks": [None]}),
        json.dumps({**TABLE, "threads": True}),
        json.dumps({**TABLE, "networks": [{**NETWORK, "ms": "2.0"}]}),
        json.dumps({**TABLE, "networks": [{**NETWORK, "ms": 0.0}]}),
        json.dumps({**TABLE, "networks": [{**NETWORK, "rest": None}]}),
        json.dumps({**TABLE, "networks": [{**NETWORK, "layers": []}]}),
        json.dumps({**TABLE, "networks": [{**NETWORK, "layers": {}}]}),
        json.dumps(TABLE).replace("0.5", "1" * 400),
        "\0" * 40,
    ],
    ids=[f"case {number}" for number in range(16)],
)
def test_a_damaged_table_is_one_sentence(content: str, tmp_path: Path) -> None:
    file = tmp_path / "latency.json"
    file.write_text(content)
    with pytest.raises(UsageError) as caught:
        read_table(str(file))
    assert str(caught.value) == f"--latency-table '{file}' is no latency.json of a probe, or damaged: copy it again"


@pytest.mark.parametrize(
    ("pack", "deployment", "words"),
    [
        ({"digest": "1" * 64, "networks": [NETWORK]}, {}, "is of another network, input or version"),
        ({"digest": "0" * 64, "networks": [NETWORK, NETWORK]}, {}, "is of another network, input or version"),
        ({"digest": "0" * 64, "networks": [{"file": "001.onnx"}]}, {}, "is of another network, input or version"),
        ({"input": [3, 64, 64]}, {}, "is of another network, input or version"),
        ({"digest": "0" * 64, "networks": [NETWORK]}, {"threads": 2}, "was made with CPUExecutionProvider, 1 threads"),
        ({"digest": "0" * 64, "networks": [NETWORK]}, {"batch": 8}, "was made with CPUExecutionProvider, 1 threads"),
        ({"digest": "0" * 64, "networks": [NETWORK]}, {"provider": "cuda"}, "was made with CPUExecutionProvider"),
    ],
    ids=["digest", "number", "order", "input", "threads", "batch", "provider"],
)
def test_a_table_of_something_else_is_refused(pack, deployment, words: str) -> None:  # type: ignore[no-untyped-def]
    pack = {"digest": "0" * 64, "input": [3, 32, 32], "networks": [NETWORK], **pack}
    with pytest.raises(UsageError, match=f"--latency-table 't' {words}"):
        check_table(LatencyTable.model_validate(TABLE), pack, DeploymentSettings(**deployment), "t")


def test_what_was_measured_once_is_not_measured_again(tmp_path: Path) -> None:
    network, noted = architecture("resnet20", tmp_path), []
    widths = torch.tensor(network.groups.sizes, dtype=torch.float64)
    key = tuple(network.groups.sizes)
    meter = LatencyMeter(network, DeploymentSettings(), 10.0, 0, lambda w, ms: noted.append((w, ms)), {key: 7.5})
    assert meter(widths) == 7.5
    assert noted == []
    half = (widths / 2).floor()
    assert 0 < meter(half) < 10.0  # a fraction of the dense network's 10 ms, on the bad end of its interval
    assert noted == [(tuple(int(width) for width in half), meter(half))]


@pytest.mark.parametrize(
    ("given", "milliseconds", "fraction"),
    [("0.4", 0.4, True), ("40%", 0.4, True), ("8ms", 8.0, False), ("0.5 s", 500.0, False), ("900us", 0.9, False)],
)
def test_latency_targets_as_people_say_them(given: str, milliseconds: float, fraction: bool) -> None:
    target = load_config(None, {"model.name": "resnet18", "target_latency": given}).target_latency
    assert target is not None
    assert (target.value, target.is_fraction) == (pytest.approx(milliseconds), fraction)


@pytest.mark.parametrize("given", ["8", "8G", "0", "-1ms", "0ms", "fast", "1.5", "3000"])
def test_a_latency_target_without_a_meaning_is_refused(given: str) -> None:
    with pytest.raises(UsageError) as caught:
        load_config(None, {"model.name": "resnet18", "target_latency": given})
    assert str(caught.value) == (
        f"--target-latency is {given}, but must be a fraction like 0.3 or 30% of the dense network's latency, "
        "or an amount like 8ms of latency"
    )
