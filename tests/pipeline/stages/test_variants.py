"""Variants of a delivered model: what a run with them leaves, and that one which does not pay is dropped."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import ModelProto, TensorProto, helper, numpy_helper
from PIL import Image
from torchvision.models import VisionTransformer

from atopipe.export.onnx import export_onnx
from atopipe.export.variants import write_variant
from atopipe.pipeline.cli.main import main
from atopipe.pipeline.rundir.directory import RunDirectory
from atopipe.pipeline.rundir.layout import file_of
from atopipe.pipeline.stages import STAGES
from atopipe.pipeline.stages.bundle.archive import write_sums
from atopipe.pipeline.stages.validate.variants import Variant, as_json, judged
from atopipe.pipeline.system.files import sha256_file, write_json
from atopipe.validate.accuracy import Flips
from atopipe.validate.latency import Comparison, LatencySummary
from atopipe.validate.session import open_session
from atopipe.validate.timing_statistics import Interval

Fault = Callable[[ModelProto], None]


@pytest.fixture(scope="module")
def copy(finished_with_variants: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(shutil.copytree(finished_with_variants, tmp_path_factory.mktemp("work"), dirs_exist_ok=True))


@pytest.fixture
def work(copy: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the complete run with variants, as the working directory."""
    monkeypatch.chdir(copy)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    return copy


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def verdict(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = read(run / "stages/validate/variants.json")
    return found


def test_a_run_says_what_becomes_of_every_variant(work: Path) -> None:
    found, metrics = verdict(work / "out"), read(work / "out/metrics.json")
    assert found["kept"][0] == "fp32"
    assert sorted([*found["kept"], *found["dropped"]]) == ["fp16", "fp32", "int8"]
    assert found["winner"] in found["kept"]
    assert found["cpu"] == read(work / "out/manifest.json")["hardware"]["cpu"]
    for name in ("fp16", "int8"):
        file = work / "out/stages/quantize" / file_of(name)
        assert metrics[f"size.{name}_bytes"] == file.stat().st_size < metrics["size.shrunk_bytes"]
        assert open_session(file).metadata == open_session(work / "out/stages/export/model.onnx").metadata
        drop = metrics[f"accuracy.{name}_drop"]
        assert drop == pytest.approx(metrics["accuracy.onnx"] - metrics[f"accuracy.{name}"])
        assert metrics[f"accuracy.{name}_drop_low"] <= drop <= metrics[f"accuracy.{name}_drop_high"]
        assert 0 < metrics[f"parity.{name}_max_rel_diff"] < 0.5
    for name in found["kept"][1:]:
        assert metrics[f"latency.{name}_ratio_high"] <= 1
    text = (work / "out/summary.md").read_text()
    assert [reason for reason in found["dropped"].values() if reason not in text] == []


def test_the_bundle_holds_what_was_kept_and_tests_it(work: Path) -> None:
    found, bundle = verdict(work / "out"), work / "out/bundle"
    assert {path.name for path in bundle.glob("*.onnx")} == {file_of(name) for name in found["kept"]}
    manifest = read(bundle / "manifest.json")
    assert manifest["variants"] == found
    assert manifest["stages"][3]["stage"] == "quantize"
    card = (bundle / "MODEL_CARD.md").read_text()
    assert [name for name in found["kept"] if sha256_file(bundle / file_of(name)) not in card] == []


def test_a_variant_can_be_asked_for_later_and_left_out_again(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(work / "out", work / "other")
    again = ["run", "--config", "config.yaml", "--output", "other"]
    assert main([*again, "--variants", "fp32"]) == 0
    assert capsys.readouterr().out.count("unchanged, skipped") == 3  # trained, shrunk and exported as before
    metrics = read(work / "other/metrics.json")
    assert [name for name in metrics if "int8" in name or "fp16" in name] == []
    assert not (work / "other/stages/validate/variants.json").exists()
    assert "int8" not in (work / "other/report.html").read_text()
    assert main(["quantize", "other"]) == 2
    assert capsys.readouterr().err == (
        "atopipe: this run has no stage quantize: add '--variants fp32,fp16,int8' to name what to make\n"
    )
    assert main(["quantize", "other", "--variants", "int8", "--quiet"]) == 0
    made = work / "other/stages/quantize/model.int8.onnx"
    assert sha256_file(made) == sha256_file(work / "out/stages/quantize/model.int8.onnx")
    assert not made.with_name("model.fp16.onnx").exists()


def test_the_accuracy_that_a_variant_may_lose_is_a_setting(work: Path) -> None:
    """No finite set of images shows that nothing at all is lost."""
    shutil.copytree(work / "out", work / "strict")
    assert main(["validate", "strict", "--max-variant-drop", "0", "--quiet"]) == 0
    found = verdict(work / "strict")
    assert (found["winner"], found["kept"], sorted(found["dropped"])) == ("fp32", ["fp32"], ["fp16", "int8"])
    assert all(reason.startswith("accuracy.") for reason in found["dropped"].values())
    assert main(["bundle", "strict", "--quiet"]) == 0
    assert [path.name for path in (work / "strict/bundle").glob("*.onnx")] == ["model.onnx"]


def recommit(run: Path, stage: str, file: str, change: Callable[[Path], None]) -> None:
    """Change a file of a complete stage, as if the stage had written it so."""
    directory = RunDirectory.open(run)
    result = directory.stages.result(stage)
    assert result is not None
    spec = next(known for known in STAGES if stage == known.name)
    with directory.stages.writing(spec) as attempt:
        shutil.copytree(run / "stages" / stage, attempt.folder, dirs_exist_ok=True)
        (attempt.folder / "result.json").unlink()
        change(attempt.folder / file)
        attempt.metrics = result.metrics


def spoiled(fault: Fault) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        model = onnx.load_model(path)
        fault(model)
        onnx.save_model(model, path)

    return change


def weights(model: ModelProto, kind: int) -> list[TensorProto]:
    return [tensor for tensor in model.graph.initializer if tensor.data_type == kind and len(tensor.dims) > 1]


def wrong_class(model: ModelProto) -> None:
    """Class 0 answers for class 1."""
    head = weights(model, TensorProto.INT8)[-1]
    values = numpy_helper.to_array(head).copy()
    values[[0, 1]] = values[[1, 0]]
    head.CopyFrom(numpy_helper.from_array(values, head.name))


def not_a_number(model: ModelProto) -> None:
    head = weights(model, TensorProto.FLOAT16)[-1]
    head.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(head) * np.float16(np.nan), head.name))


def much_work(model: ModelProto) -> None:
    """The same logits, after large products that count for nothing."""
    arrays = {"up": np.ones((10, 1500), np.float32), "square": np.ones((1500, 1500), np.float32)}
    arrays["zero"] = np.zeros(1, np.float32)
    model.graph.node[-1].output[0] = "before"
    model.graph.node.extend(
        [
            helper.make_node("MatMul", ["before", "up"], ["large"]),
            helper.make_node("MatMul", ["large", "square"], ["larger"]),
            helper.make_node("ReduceMean", ["larger"], ["mean"], keepdims=1),
            helper.make_node("Mul", ["mean", "zero"], ["nothing"]),
            helper.make_node("Add", ["before", "nothing"], ["logits"]),
        ]
    )
    model.graph.initializer.extend([numpy_helper.from_array(array, name) for name, array in arrays.items()])


def no_model(model: ModelProto) -> None:
    model.graph.node[0].op_type = "Nonsense"


@pytest.mark.parametrize(
    ("variant", "fault", "words"),
    [
        ("int8", wrong_class, "accuracy.int8_drop = "),
        ("int8", much_work, "latency.int8_ratio = "),
        ("int8", no_model, "is no ONNX model that this ONNX Runtime can load"),
        ("fp16", not_a_number, "the model gives a logit that is not a finite number, so it has no accuracy"),
    ],
    ids=["less accurate", "slower", "unknown operator", "not a number"],
)
def test_a_variant_that_does_not_pay_is_dropped_with_the_reason(
    work: Path, variant: str, fault: Fault, words: str
) -> None:
    run = work / "faulty"
    shutil.rmtree(run, ignore_errors=True)
    shutil.copytree(work / "out", run)
    recommit(run, "quantize", file_of(variant), spoiled(fault))
    assert main(["validate", str(run), "--quiet"]) == 0  # the run is what it was without the variant
    found = verdict(run)
    assert variant not in found["kept"]
    assert words in found["dropped"][variant]
    if fault is much_work and "is inconclusive" not in found["dropped"][variant]:
        assert found["dropped"][variant].endswith(" is not at most 1")
    assert main(["bundle", str(run), "--quiet"]) == 0
    assert not (run / "bundle" / file_of(variant)).exists()


def transformer(path: Path) -> None:
    """A float16 transformer, which makes some versions of ONNX Runtime crash as it is loaded."""
    net = VisionTransformer(
        image_size=8, patch_size=4, num_layers=1, num_heads=2, hidden_dim=16, mlp_dim=32, num_classes=10
    )
    source, images = path.with_name("source.onnx"), np.zeros((1, 3, 8, 8), np.float32)
    export_onnx(net.eval(), torch.from_numpy(images), source, metadata={})
    write_variant("fp16", source, path, images)
    source.unlink()


def test_a_variant_that_crashes_the_runtime_does_not_end_the_run(work: Path) -> None:
    shutil.copytree(work / "out", work / "crashing")
    recommit(work / "crashing", "quantize", "model.fp16.onnx", transformer)
    done = subprocess.run(
        [sys.executable, "-m", "atopipe.pipeline", "validate", "crashing", "--quiet"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    found = verdict(work / "crashing")
    assert re.search("ONNX Runtime crashed \\(signal 11\\)|accuracy.fp16_drop = ", found["dropped"]["fp16"])


def overflow(model: ModelProto) -> None:
    """The same logits by way of activations that float16 cannot hold, though it can hold every weight."""
    factors = [300, 300, 300, 9e4, 1 / 9e4]  # of both convolutions' weights and biases, and of the head's weight
    tensors = [tensor for tensor in model.graph.initializer if tensor.data_type == TensorProto.FLOAT]
    for tensor, factor in zip(tensors[:-1], factors, strict=True):
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(factor), tensor.name))


def test_activations_beyond_float16_leave_that_variant_out(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(work / "out", work / "large")
    recommit(work / "large", "export", "model.onnx", spoiled(overflow))
    assert main(["quantize", "large"]) == 0
    made = read(work / "large/stages/quantize/variants.json")
    assert made["fp16"]["reason"].startswith("float16 ends at 65504, but the activation '")
    assert f"fp16    skipped: {made['fp16']['reason']}\n" in capsys.readouterr().out
    assert sorted(path.name for path in (work / "large/stages/quantize").glob("*.onnx")) == ["model.int8.onnx"]
    main(["validate", "large", "--quiet"])
    found = verdict(work / "large")
    assert found["dropped"]["fp16"] == made["fp16"]["reason"]
    assert "latency.fp16_p50_ms" not in read(work / "large/metrics.json")


@pytest.fixture
def bundle(work: Path) -> Path:
    """The bundle of a machine on which every variant pays."""
    everything = {"winner": "int8", "kept": ["fp32", "fp16", "int8"], "dropped": {}}
    if not (work / "all").exists():
        shutil.copytree(work / "out", work / "all")
        recommit(work / "all", "validate", "variants.json", lambda path: write_json(path, everything))
        assert main(["bundle", "all", "--quiet"]) == 0
    shutil.rmtree(work / "unpacked", ignore_errors=True)
    return Path(shutil.copytree(work / "all/bundle", work / "unpacked"))


def alone(bundle: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-I", str(bundle / "infer.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_the_program_of_the_bundle_runs_every_variant(bundle: Path) -> None:
    tested = json.loads(alone(bundle, "--selftest", "--json").stdout)["selftest"]
    assert list(tested["variants"]) == ["fp32", "fp16", "int8"]
    assert tested["variants"]["fp32"] == tested["max_abs_diff"]
    with np.load(bundle / "samples/samples.npz") as samples:
        logits = [samples[name] for name in ("logits", "logits_fp16", "logits_int8")]
        Image.fromarray(samples["pixels"][0].transpose(1, 2, 0)).save(bundle.parent / "digit.png")
    for name, wanted in zip(tested["variants"], logits, strict=True):
        answer = alone(bundle, "--image", str(bundle.parent / "digit.png"), "--variant", name, "--json").stdout
        shares = json.loads(answer)["classes"]
        likely = np.exp(wanted[0] - wanted[0].max())
        assert max(shares.values()) == pytest.approx((likely / likely.sum()).max(), abs=0.02)
    assert len({array.tobytes() for array in logits}) == 3
    refused = alone(bundle, "--selftest", "--variant", "int4")
    assert "invalid choice: 'int4' (choose from" in refused.stderr


@pytest.mark.parametrize(("variant", "off"), [("fp16", 0.05), ("int8", 0.5)])
def test_a_variant_that_answers_otherwise_on_a_device_is_noticed(bundle: Path, variant: str, off: float) -> None:
    with np.load(bundle / "samples/samples.npz") as samples:
        arrays = dict(samples)
    arrays[f"logits_{variant}"][3, 2] += off * arrays[f"logits_{variant}"].std()
    np.savez(bundle / "samples/samples.npz", **arrays)
    write_sums(bundle)
    done = alone(bundle, "--selftest")
    assert done.returncode == 1
    assert done.stderr.startswith(f"infer.py: a logit of {file_of(variant)} differs by ")


def test_a_device_may_measure_a_variant(work: Path, bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done = alone(bundle, "--bench", "--variant", "int8", "--seconds", "0.3", "--json")
    assert done.returncode == 0, done.stderr
    (work / "device.json").write_text(done.stdout)
    assert main(["report", "all", "--add", "device.json", "--quiet"]) == 0
    measured = json.loads(done.stdout)
    line = f"device  int8: {measured['bench']['p50_ms']:.3g} ms on {measured['device']['cpu']} ("
    assert line in (work / "all/summary.md").read_text()
    (work / "device.json").write_text(json.dumps(measured | {"variant": "fp16"}))
    assert main(["report", "all", "--add", "device.json"]) == 2
    assert "belongs to another model" in capsys.readouterr().err


def compared(ratio: float, spread: float = 0.02, kept: float = 1.0) -> Comparison:
    times = LatencySummary(100, 1.0, None)
    return Comparison(times, times, Interval(ratio, ratio - spread, ratio + spread), 10, kept, 1, 1, 1.0)


@pytest.mark.parametrize(
    ("flips", "latency", "because", "reason"),
    [
        (Flips(1000, 998, 1, 1), compared(0.5), None, None),
        (Flips(1000, 900, 0, 50), compared(0.5), None, "accuracy.int8_drop = 0.05 (between "),
        (Flips(1000, 980, 0, 15), compared(0.5), None, " may or may not be at most 0.02"),
        (Flips(1000, 998, 1, 1), compared(1.2), None, "(between 1.18 and 1.22) is not at most 1"),
        (Flips(1000, 998, 1, 1), compared(0.99), None, "(between 0.97 and 1.01) may or may not be at most 1"),
        (Flips(1000, 998, 1, 1), compared(0.5), "the moon is full", "is inconclusive: the moon is full"),
        (Flips(1000, 998, 1, 1), compared(0.5, kept=0.5), None, "only 50 % of timed runs were not preempted"),
        (Flips(1000, 900, 0, 50), compared(1.2), None, "accuracy.int8_drop"),
    ],
)
def test_what_cannot_be_decided_is_dropped_as_well(
    flips: Flips, latency: Comparison, because: str | None, reason: str | None
) -> None:
    found = judged(Variant("int8", flips=flips, latency=latency), 0.02, because).reason
    assert found == reason if reason is None else reason in str(found)


def test_the_fastest_of_what_is_kept_wins() -> None:
    variants = [
        Variant("fp16", latency=compared(0.9)),
        Variant("int8", latency=compared(0.4)),
        Variant("int4", reason="too coarse", latency=compared(0.2)),
    ]
    assert as_json(variants) == {
        "winner": "int8",
        "kept": ["fp32", "fp16", "int8"],
        "dropped": {"int4": "too coarse"},
    }
    assert as_json(variants[2:])["winner"] == "fp32"
