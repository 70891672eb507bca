"""Weights by name, out of real caches made from random weights, and without a network."""

import hashlib
import json
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from atopipe.pipeline.cli.main import main
from atopipe.pipeline.config.load import load_config
from atopipe.pipeline.config.schema import Config
from atopipe.pipeline.data.preprocessing import preprocess, to_pixels
from atopipe.pipeline.engine.start import described, input_of, load_start, model_name, new_model
from atopipe.pipeline.engine.teacher import load_teacher, teacher_weights
from atopipe.pipeline.engine.workspace import Workspace
from atopipe.pipeline.models.weights import download
from atopipe.pipeline.models.weights.find import fetch_weights, find_weights
from atopipe.pipeline.report.terminal import QuietDisplay
from atopipe.pipeline.rundir.external_inputs import fingerprints, outside_files
from atopipe.pipeline.system.errors import MissingError, UsageError

TORCHVISION, TIMM = "shufflenet_v2_x0_5", "timm/test_resnet.r160_in1k"
REVISION = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(autouse=True)
def connections(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Empty caches, and what was to be connected to: nothing gets out."""
    attempts: list[object] = []

    def refuse(*where: object, **_: object) -> Any:
        attempts.append(where)
        raise OSError("no network in this test")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return attempts


@pytest.fixture
def torchvision_cache(tmp_path: Path) -> Path:
    """What torchvision would have downloaded, of random weights."""
    path = tmp_path / "torch" / "hub" / "checkpoints" / "shufflenetv2_x0.5-f707e7126e.pth"
    path.parent.mkdir(parents=True)
    torch.manual_seed(1)
    torch.save(new_model(config(TORCHVISION, None), 1000).state_dict(), path)
    return path


@pytest.fixture
def timm_cache(tmp_path: Path) -> Path:
    """A repository of the hub as its client leaves it: refs, blobs, and a snapshot of links."""
    timm = pytest.importorskip("timm")
    folder = tmp_path / "hub" / "models--timm--test_resnet.r160_in1k"
    snapshot, blobs = folder / "snapshots" / REVISION, folder / "blobs"
    for made in (snapshot, blobs, folder / "refs"):
        made.mkdir(parents=True)
    (folder / "refs" / "main").write_text(REVISION)
    torch.manual_seed(2)
    save_file(timm.create_model("test_resnet.r160_in1k").state_dict(), blobs / "weights")
    (blobs / "config").write_text('{"architecture": "test_resnet", "pretrained_cfg": {}}')
    (snapshot / "model.safetensors").symlink_to("../../blobs/weights")
    (snapshot / "config.json").symlink_to("../../blobs/config")
    return snapshot / "model.safetensors"


def config(model: str, weights: str | None = "default", **values: object) -> Config:
    named = {"model.name": model, "target_flops": 0.5, **({"model.weights": weights} if weights else {}), **values}
    return load_config(None, named)


def loaded(settings: Config, classes: int = 5) -> tuple[torch.nn.Module, str]:
    model = new_model(settings, classes)
    return model, load_start(settings, model, classes)


@pytest.mark.parametrize("weights", ["default", "DEFAULT", "IMAGENET1K_V1", "ShuffleNet_V2_X0_5_Weights.IMAGENET1K_V1"])
def test_torchvisions_weights_come_out_of_its_cache(
    torchvision_cache: Path, connections: list[object], weights: str
) -> None:
    model, said = loaded(config(TORCHVISION, weights))
    expected = torch.load(torchvision_cache, weights_only=True)
    assert all(torch.equal(t, expected[n]) for n, t in model.state_dict().items() if not n.startswith("fc."))
    assert said == (
        "from ShuffleNet_V2_X0_5_Weights.IMAGENET1K_V1: 336 of 338 tensors loaded; 'fc.bias', 'fc.weight' "
        "re-initialised for 5 classes instead of 1000; not the published file: "
        "its SHA-256 does not begin with f707e7126e"
    )
    assert connections == []


@pytest.mark.parametrize(
    ("model", "weights"), [(TIMM, "default"), ("timm/test_resnet", "r160_in1k"), ("timm/test_resnet", "default")]
)
def test_timms_weights_come_out_of_the_hubs_cache(
    timm_cache: Path, connections: list[object], model: str, weights: str
) -> None:
    from safetensors.torch import load_file

    settings = config(model, weights)
    network, said = loaded(settings)
    expected = load_file(timm_cache)
    assert all(torch.equal(t, expected[n]) for n, t in network.state_dict().items() if not n.startswith("fc."))
    assert said.startswith("from timm/test_resnet.r160_in1k: ")
    assert said.endswith("'fc.bias', 'fc.weight' re-initialised for 5 classes instead of 1000")
    assert described(settings) == {
        "key": "timm/test_resnet.r160_in1k",
        "file": "model.safetensors",
        "sha256": hashlib.sha256(timm_cache.read_bytes()).hexdigest(),
        "license": "apache-2.0",
        "address": "https://huggingface.co/timm/test_resnet.r160_in1k",
    }
    assert connections == []


def test_weights_by_name_teach_where_the_classes_are_theirs(torchvision_cache: Path, connections: list[object]) -> None:
    settings = config(TORCHVISION, None, teacher="default")
    source = teacher_weights(settings)
    assert source is not None
    expected = torch.load(torchvision_cache, weights_only=True)
    assert all(torch.equal(t, expected[name]) for name, t in load_teacher(settings, source, 1000).state_dict().items())
    assert outside_files(settings)["teacher"] == {torchvision_cache.name: torchvision_cache}
    with pytest.raises(UsageError) as refused:
        load_teacher(settings, source, 5)
    assert str(refused.value) == (
        "--teacher 'default' has a head for 1000 classes, where the data have 5: "
        "give weights trained on these classes, or --teacher baseline"
    )
    with pytest.raises(UsageError, match="--teacher 'imagenet' is neither a file nor weights of 'shufflenet_v2_x0_5'"):
        teacher_weights(config(TORCHVISION, None, teacher="imagenet"))
    assert connections == []


def test_a_head_for_as_many_classes_is_kept(torchvision_cache: Path) -> None:
    model, said = loaded(config(TORCHVISION, "default", **{"model.keep_head": True}), 1000)
    assert torch.equal(model.get_parameter("fc.weight"), torch.load(torchvision_cache, weights_only=True)["fc.weight"])
    assert "338 of 338 tensors loaded" in said


def test_the_digest_of_the_weights_is_an_external_input(torchvision_cache: Path, tmp_path: Path) -> None:
    record, settings = tmp_path / "inputs.json", config(TORCHVISION)
    before = fingerprints(settings, record)
    torch.save({}, torchvision_cache)
    assert fingerprints(settings, record)["weights"] != before["weights"]


@pytest.mark.parametrize(
    ("model", "where", "remedy"),
    [
        (
            TORCHVISION,
            "torch/hub/checkpoints/shufflenetv2_x0.5-f707e7126e.pth",
            "fetch https://download.pytorch.org/models/shufflenetv2_x0.5-f707e7126e.pth on another machine and copy it there",  # noqa: E501
        ),
        (
            TIMM,
            "hub/models--timm--test_resnet.r160_in1k/snapshots/*/model.safetensors",
            "run 'hf download timm/test_resnet.r160_in1k model.safetensors' on another machine and copy '{}/hub/models--timm--test_resnet.r160_in1k'",  # noqa: E501
        ),
    ],
)
def test_a_cold_cache_without_a_network_names_the_file_and_the_remedy(
    tmp_path: Path, model: str, where: str, remedy: str
) -> None:
    with pytest.raises(MissingError) as caught:
        fetch_weights(model, "default")
    key = "ShuffleNet_V2_X0_5_Weights.IMAGENET1K_V1" if model == TORCHVISION else TIMM
    assert str(caught.value) == (
        f"weights {key} are not in '{tmp_path}/{where}' and their server cannot be reached: "
        f"{remedy.format(tmp_path)}, or give --weights FILE"
    )


def test_nothing_is_asked_where_the_hub_is_to_stay_offline(
    monkeypatch: pytest.MonkeyPatch, connections: list[object]
) -> None:
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "model.safetensors' and HF_HUB_OFFLINE forbids the download: run 'hf" in message(
        MissingError, TIMM, "default"
    )
    assert connections == []


def test_a_file_is_told_without_its_folders(tmp_path: Path) -> None:
    path = tmp_path / "private" / "w.pth"
    path.parent.mkdir()
    path.write_bytes(b"weights")
    assert described(config("resnet18", str(path))) == {
        "key": "w.pth",
        "file": "w.pth",
        "sha256": hashlib.sha256(b"weights").hexdigest(),
        "license": "not known of a file",
    }


def test_a_server_that_says_nothing_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    import threading
    import time

    monkeypatch.setattr(download, "PATIENCE", 0.1)
    monkeypatch.setattr(download, "_asked", lambda address: threading.Event().wait(60))
    started = time.perf_counter()
    with pytest.raises(MissingError, match="their server cannot be reached"):
        fetch_weights(TORCHVISION, "default")
    assert time.perf_counter() - started < 20


def test_what_is_not_there_ends_a_run_before_the_images_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    command = ["run", "--model", TORCHVISION, "--weights", "default", "--target-flops", "0.5", "--output", "out"]
    assert main([*command, "--data", "imagefolder:nowhere"]) == 5
    assert "shufflenetv2_x0.5-f707e7126e.pth' and their server cannot be reached" in capsys.readouterr().err


def message(kind: type[Exception], model: str, weights: str) -> str:
    with pytest.raises(kind) as caught:
        fetch_weights(model, weights)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_name_that_nobody_has_gets_the_nearest() -> None:
    pytest.importorskip("timm")
    assert message(UsageError, "resnet50", "IMAGENET1K_V3") == (
        "--weights 'IMAGENET1K_V3' is neither a file nor weights of 'resnet50': "
        "did you mean IMAGENET1K_V2 or IMAGENET1K_V1?"
    )
    assert message(UsageError, "timm/resnet18", "a1_in2k").startswith(
        "'a1_in2k' is neither a file nor weights of 'timm/resnet18': did you mean a1_in1k, "
    )
    assert message(UsageError, "timm/resnet18.a1_in2k", "default").endswith("did you mean a1_in1k, a3_in1k or a2_in1k?")
    assert message(UsageError, "timm/resnet18.a1_in1k", "a2_in1k") == (
        "--weights 'a2_in1k' is another tag than that of --model 'timm/resnet18.a1_in1k': write --weights default"
    )
    assert message(UsageError, "resnet20", "default") == (
        "--weights 'default' is not a file, and 'resnet20' has no weights by name: give a file"
    )
    assert message(UsageError, "net.py:make", "default") == (
        "--weights 'default' is not a file, and 'net.py:make' has no weights by name: "
        "give a file, or a model of torchvision or timm"
    )


def test_a_tag_without_weights_is_no_start_from_scratch_in_silence() -> None:
    with pytest.raises(
        UsageError, match=r"^--model 'timm/resnet18.a1_in1k' names weights by the tag behind the dot, and"
    ):
        model_name(config("timm/resnet18.a1_in1k", None))


@pytest.mark.parametrize("kept", [0.0, 0.5])
def test_a_half_downloaded_file_is_told_and_how_to_mend_it(torchvision_cache: Path, kept: float) -> None:
    content = torchvision_cache.read_bytes()
    torchvision_cache.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(MissingError) as caught:
        loaded(config(TORCHVISION))
    state = "damaged or incomplete (BadZipFile)" if kept else "empty"
    assert str(caught.value) == (
        f"cached file '{torchvision_cache}' of ShuffleNet_V2_X0_5_Weights.IMAGENET1K_V1 is {state}: "
        "delete it and fetch it again"
    )


def photo(height: int, width: int) -> Image.Image:
    noise = np.random.default_rng(0).integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


def prepared(settings: Config, tmp_path: Path) -> Workspace:
    for split in ("train", "val"):
        for label in ("a", "b"):
            folder = tmp_path / "photos" / split / label
            folder.mkdir(parents=True, exist_ok=True)
            photo(160, 160).save(folder / "1.png")
            photo(160, 160).save(folder / "2.png")
    return Workspace(settings, QuietDisplay())


def test_images_are_prepared_as_torchvisions_weights_want_them(tmp_path: Path) -> None:
    from torchvision import models

    settings = config("resnet18", **{"data.source": f"imagefolder:{tmp_path}/photos"})
    ours = preprocess(photo(320, 320), prepared(settings, tmp_path).data.preprocessing)
    theirs = models.get_weight("ResNet18_Weights.DEFAULT").transforms()(photo(320, 320))
    np.testing.assert_allclose(ours, theirs.numpy(), atol=1e-5)


def test_images_are_prepared_as_timms_weights_want_them(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    settings = config("timm/resnet18.a1_in1k", **{"data.source": f"imagefolder:{tmp_path}/photos"})
    data = prepared(settings, tmp_path).data
    found = data.preprocessing
    decoded = next(iter(data.val.images.read([torch.tensor([0])], torch.device("cpu"))))[0]
    assert np.array_equal(decoded, to_pixels(photo(160, 160), found.resize, found.size, "bicubic"))
    assert (found.size, found.resize, found.interpolation) == ((224, 224), (236, 236), "bicubic")  # an even margin
    theirs = timm.data.create_transform(
        input_size=224, is_training=False, interpolation="bicubic", crop_pct=224 / 236, mean=found.mean, std=found.std
    )
    np.testing.assert_allclose(preprocess(photo(320, 320), found), theirs(photo(320, 320)).numpy(), atol=1e-5)


def test_the_users_size_wins_and_other_sources_keep_theirs() -> None:
    photos = {"data.source": "imagefolder:photos"}
    assert input_of(config("resnet18", **photos, **{"data.input_size": 96})) == {
        "input_size": 96,
        "resize": None,
        "interpolation": "bilinear",
    }
    assert input_of(config("resnet18")) == {"input_size": None}
    assert input_of(config("resnet18", "weights.pth", **photos)) == {"input_size": None}


@pytest.mark.parametrize(
    ("model", "weights", "normalize", "mean"),
    [
        ("resnet18", "default", None, (0.485, 0.456, 0.406)),
        ("resnet18", "default", "weights", (0.485, 0.456, 0.406)),
        ("resnet18", "w.pth", "0.5:0.25", (0.5, 0.5, 0.5)),
        ("resnet18", "w.pth", "0.1,0.2,0.3:1,1,1", (0.1, 0.2, 0.3)),
        # torchvision rescales the input inside this network; the same is done before it
        ("inception_v3", "default", None, (0.5, 0.5, 0.5)),
    ],
)
def test_whose_normalisation_is_used(model: str, weights: str, normalize: str | None, mean: tuple[float, ...]) -> None:
    settings = config(model, weights, **({"data.normalize": normalize} if normalize else {}))
    data = Workspace(settings, QuietDisplay()).data
    assert data.preprocessing.mean == data.val.preprocessing.mean == data.train.preprocessing.mean == mean
    images, _ = next(iter(data.val.batches(4, device="cpu")))
    pixels = next(iter(data.val.images.read([torch.arange(4)], torch.device("cpu"))))
    wanted = (pixels / 255 - torch.tensor(mean)[:, None, None]) / torch.tensor(data.preprocessing.std)[:, None, None]
    torch.testing.assert_close(images, wanted)


def test_the_datas_own_normalisation_stays_where_nothing_else_is_known_or_wanted() -> None:
    plain, file, asked = (
        Workspace(config("resnet18", weights, **values), QuietDisplay()).data.preprocessing
        for weights, values in ((None, {}), ("w.pth", {}), ("default", {"data.normalize": "data"}))
    )
    assert plain == file == asked
    with pytest.raises(
        UsageError, match=r"^--normalize weights: what a file was trained with is not known: give MEAN:STD"
    ):
        _ = Workspace(config("resnet18", "w.pth", **{"data.normalize": "weights"}), QuietDisplay()).data


def test_find_weights_reads_nothing(connections: list[object], tmp_path: Path) -> None:
    assert not find_weights("resnet50", "IMAGENET1K_V2").file.exists()
    assert connections == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_run_from_weights_by_name_says_whose_they_are_and_needs_them_once(
    timm_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    prepared(config(TIMM), tmp_path)
    (tmp_path / "run.yaml").write_text(
        f"model: {{name: {TIMM}, weights: default}}\ntarget_flops: 0.7\ndata: {{source: 'imagefolder:photos', "
        "input_size: 32}\nrecipe: {epochs: 1, batch_size: 2, align: 1}\nvalidation: {latency_s: 0.1}\n"
        "threads: 1\ndevice: cpu\npreflight: false\n"
    )
    command = ["run", "--config", "run.yaml", "--output", "out"]
    assert main(command) == 3, "from these images nothing can be learned"
    said = capsys.readouterr().out
    assert "weights from timm/test_resnet.r160_in1k: " in said
    digest = hashlib.sha256(timm_cache.read_bytes()).hexdigest()
    for manifest in ("manifest.json", "bundle/manifest.json"):
        weights = json.loads((tmp_path / "out" / manifest).read_text())["weights"]
        assert (weights["key"], weights["sha256"], weights["license"]) == (TIMM, digest, "apache-2.0")
    card = (tmp_path / "out/bundle/MODEL_CARD.md").read_text()
    assert f"weights `{TIMM}`" in card
    assert "licence: apache-2.0" in card
    assert digest in card
    preprocess = json.loads((tmp_path / "out/bundle/preprocess.json").read_text())
    assert (preprocess["interpolation"], preprocess["mean"]) == ("bilinear, antialiased", [0.5, 0.5, 0.5])
    timm_cache.unlink()
    assert main(command) == 3, "what is complete does without the weights"
    assert capsys.readouterr().out.count("unchanged, skipped") == 6
