"""Packs of weightless networks: the graphs are those that real exports give, and a device times them without torch."""

import json
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

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
from atopipe.pipeline.stages.profile import pack as packs
from atopipe.pipeline.stages.profile import probe
from atopipe.pipeline.stages.profile.cliffs import Cliff, cliffs
from atopipe.pipeline.stages.profile.measure import LatencyMeter
from atopipe.pipeline.stages.profile.pack import ARCHIVE, Architecture, random_widths, write_pack
from atopipe.pipeline.stages.profile.table import LatencyTable, check_table, read_table, require_steady
from atopipe.pipeline.system.errors import Inconclusive, MissingError, UsageError


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


def test_no_two_weights_are_alike(tmp_path: Path) -> None:
    """A runtime keeps equal constants once; a trained network has none, and is slower than what shares its cache."""
    graph = onnx.load_from_string(
        architecture("resnet20", tmp_path).without_weights(torch.tensor([8.0] * 12).double())
    ).graph
    fills = {
        node.output[0]: float(onnx.numpy_helper.to_array(node.attribute[0].t)[0])
        for node in graph.node
        if node.op_type == "ConstantOfShape"
    }
    weights = [node.input[1] for node in graph.node if node.op_type in ("Conv", "Gemm") and node.input[1] in fills]
    assert len(weights) > 20
    assert len({fills[name] for name in weights}) == len(weights)


@pytest.fixture
def few_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Packs of few networks: enough to see."""
    monkeypatch.setattr(packs, "FITTED", 3)
    monkeypatch.setattr(packs, "HELD_OUT", 1)
    monkeypatch.setattr(packs, "FEWER", (1,))


@pytest.mark.usefixtures("few_networks")
def test_a_device_times_every_layer_of_every_network(tmp_path: Path) -> None:
    network, pack = architecture("resnet20", tmp_path), tmp_path / "pack"
    pack.mkdir()
    said = write_pack(pack, network, torch.zeros(1, 3, 32, 32), align=4, generator=torch.Generator().manual_seed(0))
    assert sum(file.stat().st_size for file in pack.iterdir()) < 1e6 / 10
    assert {entry["for"] for entry in said["networks"]} == {"fit", "held-out", "cliff"}
    blocked = "import sys; sys.modules['torch'] = None; sys.argv[0] = 'probe.py'; "
    code = blocked + f"import runpy; runpy.run_path({str(pack / 'probe.py')!r}, run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", code, str(pack)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    table = read_table(str(pack / "latency.json"))
    layers = {name for name, module in network.model.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)}
    for timed in table.networks:
        assert set(timed.layers) == set(timed.operations) == layers
        assert 0.5 < sum(timed.layers.values()) / timed.ms < 3
    assert (table.pack, table.threads, table.batch) == (said["digest"], 1, 1)


def test_the_probe_and_the_pack_are_of_one_format() -> None:
    assert (packs.FORMAT, packs.ARCHIVE) == (probe.FORMAT, probe.NETWORKS)


ENTRY = {"file": "000.onnx", "sha256": "0" * 64, "widths": [1]}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (json.dumps({"format": 2, "networks": [ENTRY]}), "'000.onnx' in"),
        (json.dumps({"format": 2, "networks": [{**ENTRY, "file": "001.onnx"}]}), "is no pack of networks"),
        ("{", "is no pack of networks"),
        ("[]", "is no pack of networks"),
        ('{"networks": [], "format": 9}', "is a pack of another version"),
    ],
    ids=["changed", "not in the archive", "cut off", "a list", "other version"],
)
def test_a_damaged_pack_is_one_sentence(text: str, words: str, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / ARCHIVE, "w") as archive:
        archive.writestr("000.onnx", b"model")
    (tmp_path / "probe.py").write_bytes(Path(probe.__file__).read_bytes())
    (tmp_path / "pack.json").write_text(text)
    command = [sys.executable, str(tmp_path / "probe.py"), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("probe.py: '")
    assert words in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.usefixtures("few_networks")
def test_a_provider_that_is_not_there_is_one_sentence(tmp_path: Path) -> None:
    network, pack = architecture("resnet20", tmp_path), tmp_path / "pack"
    pack.mkdir()
    write_pack(pack, network, torch.zeros(1, 3, 32, 32), align=4, generator=torch.Generator().manual_seed(0))
    with pytest.raises(probe.Failed, match=r"^provider 'QNNExecutionProvider' is not in this ONNX Runtime: choose"):
        probe.probe(pack, "QNNExecutionProvider", 1, 1)


NETWORK: dict[str, Any] = {
    "file": "000.onnx",
    "ms": 2.0,
    "spread": 0.01,
    "layers": {"conv1": 1.5},
    "operations": {"conv1": 2},
}
TABLE: dict[str, Any] = {
    "format": 2,
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
    (tmp_path / "latency.json").write_text(probe.sealed(TABLE))
    assert read_table(str(tmp_path / "latency.json")).model_dump() == TABLE


def test_a_table_that_is_not_there_names_what_writes_it(tmp_path: Path) -> None:
    with pytest.raises(MissingError) as caught:
        read_table(str(tmp_path / "latency.json"))
    assert str(caught.value) == (
        f"--latency-table '{tmp_path / 'latency.json'}' is not there: run 'python probe.py PACK' on the device, "
        "and copy it"
    )


WHOLE = probe.sealed(TABLE)


@pytest.mark.parametrize(
    "content",
    [
        WHOLE[:-20],
        WHOLE.replace("2.0", "1.0", 1),
        json.dumps(TABLE),
        "[" * 100_000,
        probe.sealed({**TABLE, "format": 3}),
        probe.sealed({**TABLE, "format": True}),
        probe.sealed({name: value for name, value in TABLE.items() if name != "networks"}),
        probe.sealed({**TABLE, "networks": [None]}),
        probe.sealed({**TABLE, "threads": True}),
        probe.sealed({**TABLE, "networks": [{**NETWORK, "ms": "2.0"}]}),
        probe.sealed({**TABLE, "networks": [{**NETWORK, "ms": 0.0}]}),
        probe.sealed({**TABLE, "networks": [{**NETWORK, "layers": []}]}),
        probe.sealed({**TABLE, "networks": [{**NETWORK, "layers": {}}]}),
        probe.sealed({**TABLE, "networks": [{**NETWORK, "operations": {"conv1": 0}}]}),
        "\0" * 40,
    ],
    ids=[f"case {number}" for number in range(15)],
)
def test_a_damaged_or_edited_table_is_one_sentence(content: str, tmp_path: Path) -> None:
    file = tmp_path / "latency.json"
    file.write_text(content)
    with pytest.raises(UsageError) as caught:
        read_table(str(file))
    assert str(caught.value) == (
        f"--latency-table '{file}' is no latency.json of a probe, or was edited or cut off: copy it again"
    )


def test_a_table_of_a_busy_device_decides_nothing_and_says_how_busy_it_was() -> None:
    def table(*spreads: float) -> LatencyTable:
        return LatencyTable.model_validate({**TABLE, "networks": [{**NETWORK, "spread": s} for s in spreads]})

    require_steady(table(0.01, 0.05, 0.9))
    with pytest.raises(Inconclusive, match=r"differ by 31 % from round to round, more than 20 %: end what else runs"):
        require_steady(table(0.01, 0.31, 0.9))


def test_cliffs_are_found_where_fewer_channels_take_longer(tmp_path: Path) -> None:
    network = architecture("resnet20", tmp_path)
    sizes, layers = network.groups.sizes, ["stage1.0.conv1", "stage1.0.conv2"]
    pack = {
        "networks": [
            {"for": "fit", "widths": sizes},
            {"for": "fit", "widths": [1] * len(sizes)},
            *({"for": "cliff", "widths": [size - fewer for size in sizes]} for fewer in (1, 2)),
        ]
    }
    times = [(1.0, 1.0), (9.0, 9.0), (1.5, 1.01), (1.4, 0.9)]
    networks = [{**NETWORK, "layers": dict(zip(layers, pair, strict=True))} for pair in times]
    table = LatencyTable.model_validate({**TABLE, "networks": networks})
    assert cliffs(pack, table, network.model, network.groups) == [Cliff("stage1.0.conv1", (15, 15), 1.5, (16, 16), 1.0)]


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
