"""Sessions: exactly the provider that was asked for, or a sentence."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from atopipe.validate.session import CPU, Optimisation, ProviderError, SessionError, open_session, usable_providers

LISTED = ", ".join(ort.get_available_providers())


def test_a_session_runs_from_a_file_and_from_its_bytes(models, images) -> None:
    from_file, from_bytes = open_session(models[8]), open_session(models[8].read_bytes())
    assert from_file.provider == CPU
    assert from_file.run(images).shape == (20, 4)
    np.testing.assert_array_equal(from_file.run(images), from_bytes.run(images))


def test_the_options_reach_onnx_runtime(models) -> None:
    session = open_session(models[8], threads=2, optimisation=Optimisation.NONE)
    options = session.runtime.get_session_options()
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (2, 1)
    assert options.graph_optimization_level == ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    assert options.execution_mode == ort.ExecutionMode.ORT_SEQUENTIAL
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"
    assert session.metadata == {"labels": '["a", "b", "c", "d"]'}


def test_every_listed_provider_is_usable_or_skipped_with_its_reason(models, images, capfd) -> None:
    providers = usable_providers(models[8])
    assert sorted([*providers.usable, *providers.skipped]) == sorted(ort.get_available_providers())
    assert CPU in providers.usable
    for provider in providers.usable:
        assert open_session(models[8], provider=provider).run(images).shape == (20, 4)
    assert [name for name, reason in providers.skipped.items() if not reason or "\n" in reason] == []
    assert capfd.readouterr() == ("", "")


@pytest.mark.skipif("TensorrtExecutionProvider" not in LISTED, reason="this ONNX Runtime knows no TensorRT")
def test_tensorrt_is_compared_in_full_float32_only(models, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NVIDIA_TF32_OVERRIDE", raising=False)
    assert usable_providers(models[8]).skipped["TensorrtExecutionProvider"] == (
        "it computes in TF32, which only NVIDIA_TF32_OVERRIDE=0 in the environment switches off"
    )


def test_an_unknown_provider_is_named_with_those_there_are(models) -> None:
    message = (
        "the provider 'NoneExecutionProvider' cannot run the model: this ONNX Runtime was built without it "
        f"(listed here: {LISTED}); install its drivers and libraries, or use 'CPUExecutionProvider'"
    )
    with pytest.raises(ProviderError, match=f"^{re.escape(message)}$"):
        open_session(models[8], provider="NoneExecutionProvider")


@pytest.mark.skipif("CUDAExecutionProvider" not in LISTED, reason="this ONNX Runtime knows no CUDA")
def test_cuda_is_used_or_refused_but_never_replaced(models, capfd) -> None:
    used, reason = "CUDAExecutionProvider", ""
    try:
        used = open_session(models[8], provider=used).runtime.get_providers()[0]
    except ProviderError as error:
        reason = str(error)
    sentence = (
        r"the provider 'CUDAExecutionProvider' cannot run the model: \S.* "
        rf"\(listed here: {LISTED}\); install its drivers and libraries, or use 'CPUExecutionProvider'"
    )
    assert used == "CUDAExecutionProvider"
    assert reason == "" or re.fullmatch(sentence, reason)
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize("content", [b"hello world", b"", b"\x08\x08"], ids=["text", "empty", "no graph"])
def test_a_file_that_is_no_model_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    message = rf"^'{re.escape(str(path))}' is no ONNX model that this ONNX Runtime can load: [^\n]+$"
    with pytest.raises(SessionError, match=message):
        open_session(path)


def test_a_truncated_model_and_a_missing_one_are_refused(models, tmp_path: Path) -> None:
    content = models[8].read_bytes()
    with pytest.raises(SessionError, match=r"^the given model is no ONNX model that this ONNX Runtime can load: "):
        open_session(content[: len(content) // 2])
    missing = tmp_path / "none.onnx"
    with pytest.raises(
        SessionError, match=rf"^there is no ONNX model at '{re.escape(str(missing))}': export one first$"
    ):
        open_session(missing)


def test_a_model_with_two_outputs_is_no_classifier() -> None:
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 3]) for name in ("images", "a", "b")]
    nodes = [helper.make_node("Relu", ["images"], [name]) for name in ("a", "b")]
    graph = helper.make_graph(nodes, "graph", values[:1], values[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    message = "the given model has 1 inputs and 2 outputs: an image classifier has one of each"
    with pytest.raises(SessionError, match=f"^{re.escape(message)}$"):
        open_session(model.SerializeToString())


def test_images_that_do_not_fit_are_refused_in_one_sentence(models, images, capfd) -> None:
    with pytest.raises(
        SessionError, match=r"^the model cannot be run on float32 images of shape \[20, 3, 16, 9\]: [^\n]+$"
    ):
        open_session(models[8]).run(images[..., :9])
    with pytest.raises(SessionError, match=r"^the model cannot be run on float64 images of shape \[20, 3, 16, 16\]: "):
        open_session(models[8]).run(images.astype(np.float64))
    assert capfd.readouterr() == ("", "")


def test_loading_and_running_says_nothing(models) -> None:
    code = "from pathlib import Path; from atopipe.validate.session import open_session; open_session(Path({!r}))"
    command = [sys.executable, "-c", code.format(str(models[8]))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_bound_run_computes_what_a_plain_one_does(models, images) -> None:
    session = open_session(models[8])
    run = session.bound(images)
    assert np.array_equal(run().numpy(), session.run(images))
    assert np.array_equal(run().numpy(), session.run(images))


@pytest.mark.parametrize("message", ["", "\n", " . "])
def test_a_failure_of_the_runtime_without_a_message_is_told_by_its_kind(
    models, monkeypatch: pytest.MonkeyPatch, message: str
) -> None:
    class Refused(Exception):
        pass

    def refuse(*_: object, **__: object) -> None:
        raise Refused(message)

    monkeypatch.setattr(ort, "InferenceSession", refuse)
    with pytest.raises(SessionError, match=r"is no ONNX model that this ONNX Runtime can load: Refused$"):
        open_session(models[8])
