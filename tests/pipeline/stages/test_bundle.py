"""The bundle on its own: what it computes without torch, what it notices, and that it is the same each time."""

import hashlib
import json
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image

from atopipe.pipeline.cli.main import main
from atopipe.pipeline.report.devices import device_lines
from atopipe.pipeline.rundir.directory import RunDirectory
from atopipe.pipeline.system.files import sha256_file

NO_TORCH = (
    "import runpy, sys; sys.modules['torch'] = None; sys.argv = sys.argv[1:]; "
    "runpy.run_path(sys.argv[0], run_name='__main__')"
)


@pytest.fixture(scope="module")
def copy(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(shutil.copytree(finished, tmp_path_factory.mktemp("work"), dirs_exist_ok=True))


@pytest.fixture
def work(copy: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the complete run, as the working directory."""
    monkeypatch.chdir(copy)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    return copy


@pytest.fixture
def bundle(work: Path, tmp_path: Path) -> Path:
    """The bundle as it arrives: unpacked from the archive, elsewhere."""
    with zipfile.ZipFile(work / "out/bundle.zip") as archive:
        archive.extractall(tmp_path)
    return tmp_path / "bundle"


def alone(bundle: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the bundle's program in a process in which torch cannot be imported."""
    command = [sys.executable, "-I", "-c", NO_TORCH, str(bundle / "infer.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, cwd=bundle.parent)


def resum(bundle: Path) -> None:
    """Make SHA256SUMS fit the files again, so that what is wrong with them has to be noticed by itself."""
    names = [line.partition("  ")[2] for line in (bundle / "SHA256SUMS").read_text().splitlines()]
    lines = [f"{hashlib.sha256((bundle / name).read_bytes()).hexdigest()}  {name}\n" for name in names]
    (bundle / "SHA256SUMS").write_text("".join(lines))


def test_the_selftest_passes_without_torch(bundle: Path) -> None:
    done = alone(bundle, "--selftest", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    assert found["selftest"]["passed"]
    assert found["selftest"]["max_abs_diff"] <= 1e-4
    assert found["model_sha256"] == sha256_file(bundle / "model.onnx")


def test_the_sums_are_those_that_sha256sum_reads(bundle: Path) -> None:
    lines = (bundle / "SHA256SUMS").read_text().splitlines()
    named = {line.partition("  ")[2] for line in lines}
    assert named == {p.relative_to(bundle).as_posix() for p in bundle.rglob("*") if p.is_file()} - {"SHA256SUMS"}
    assert all(sha256_file(bundle / line.partition("  ")[2]) == line.partition("  ")[0] for line in lines)


def test_an_image_gets_the_class_that_the_network_gives_it(work: Path, bundle: Path) -> None:
    with np.load(bundle / "samples/samples.npz") as samples:
        pixels, logits = samples["pixels"], samples["logits"]
    Image.fromarray(pixels[0].transpose(1, 2, 0)).save(bundle.parent / "digit.png")
    done = alone(bundle, "--image", str(bundle.parent / "digit.png"), "--json")
    found = json.loads(done.stdout)
    assert found["image"] == str(bundle.parent / "digit.png")
    shares = found["classes"]
    best = max(shares, key=shares.__getitem__)
    assert best == (bundle / "labels.txt").read_text().splitlines()[logits[0].argmax()]
    assert alone(bundle, "--image", str(bundle.parent / "digit.png")).stdout.splitlines()[0].endswith(f"  {best}")


def spoil_labels(bundle: Path) -> None:
    first, second, *rest = (bundle / "labels.txt").read_text().splitlines()
    (bundle / "labels.txt").write_text("\n".join([second, first, *rest]) + "\n")


def spoil_mean(bundle: Path) -> None:
    settings = json.loads((bundle / "preprocess.json").read_text())
    settings["mean"][0] += 0.01
    (bundle / "preprocess.json").write_text(json.dumps(settings))


def spoil_logits(bundle: Path) -> None:
    path = bundle / "samples/samples.npz"
    with np.load(path) as samples:
        arrays = dict(samples)
    arrays["logits"] = arrays["logits"] * 1.01
    np.savez(path, **arrays)


def spoil_photo(bundle: Path) -> None:
    path = bundle / "samples/samples.npz"
    with np.load(path) as samples:
        arrays = dict(samples)
    arrays["photo"] = arrays["photo"][:, 5:]
    np.savez(path, **arrays)


def downgrade(bundle: Path) -> None:
    model = onnx.load_model(bundle / "model.onnx")
    model.opset_import[0].version = 17
    (bundle / "model.onnx").write_bytes(model.SerializeToString())


def truncate(bundle: Path) -> None:
    (bundle / "model.onnx").write_bytes((bundle / "model.onnx").read_bytes()[:-100])


@pytest.mark.parametrize(
    ("spoil", "sums_too", "sentence"),
    [
        (truncate, False, "model.onnx is missing or changed: unpack the bundle again"),
        (downgrade, False, "model.onnx is missing or changed: unpack the bundle again"),
        (
            lambda bundle: (bundle / "MODEL_CARD.md").unlink(),
            False,
            "MODEL_CARD.md is missing or changed",
        ),
        (spoil_labels, True, "labels.txt does not hold the labels that are stored in model.onnx"),
        (spoil_mean, True, "preprocess.json does not hold the preprocessing that is stored in model.onnx"),
        (spoil_logits, True, "a logit of model.onnx differs by "),
        (spoil_photo, True, "a photo is not resized and cropped as recorded: "),
    ],
    ids=["truncated", "opset", "missing", "labels", "mean", "logits", "photo"],
)
def test_what_is_wrong_is_noticed(bundle: Path, spoil: Callable[[Path], None], sums_too: bool, sentence: str) -> None:
    spoil(bundle)
    if sums_too:
        resum(bundle)
    done = alone(bundle, "--selftest")
    assert done.returncode == 1
    assert done.stderr.startswith(f"infer.py: {sentence}")
    assert done.stderr.count("\n") == 1


def test_the_test_data_is_what_onnx_reads(bundle: Path) -> None:
    from onnx import TensorProto, numpy_helper

    with np.load(bundle / "samples/samples.npz") as samples:
        for name, file in (("images", "input_0.pb"), ("logits", "output_0.pb")):
            tensor = TensorProto.FromString((bundle / "test_data_set_0" / file).read_bytes())
            assert tensor.name == name
            np.testing.assert_array_equal(numpy_helper.to_array(tensor), samples[name])


def test_the_same_run_gives_the_same_archive(work: Path) -> None:
    before = sha256_file(work / "out/bundle.zip")
    assert main(["bundle", "out", "--force", "--quiet"]) == 0
    assert sha256_file(work / "out/bundle.zip") == before == sha256_file(work / "out/stages/bundle/bundle.zip")


def test_nothing_in_the_bundle_names_a_folder_of_this_machine(work: Path, bundle: Path) -> None:
    for file in bundle.rglob("*"):
        assert not file.is_file() or str(work).encode() not in file.read_bytes()


def test_the_measurements_of_a_device_become_a_line_of_the_report(
    work: Path, bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done = alone(bundle, "--bench", "--json", "--seconds", "0.3")
    assert done.returncode == 0, done.stderr
    device = json.loads(done.stdout)
    (work / "device.json").write_text(done.stdout)
    assert main(["report", "out", "--add", "device.json", "--quiet"]) == 0
    line = f"device  {device['bench']['p50_ms']:.3g} ms on {device['device']['cpu']} ("
    assert line in (work / "out/summary.md").read_text()
    (work / "device.json").write_text(json.dumps(device | {"model_sha256": "0" * 64}))
    assert main(["report", "out", "--add", "device.json"]) == 2
    sentence = "atopipe: device file 'device.json' belongs to another model (000000000000, this run's is "
    assert capsys.readouterr().err.startswith(sentence)
    (work / "device.json").write_text("{}")
    assert main(["report", "out", "--add", "device.json"]) == 2
    assert (
        "holds no measurements: give the output of 'python infer.py --bench --json' on the device"
        in capsys.readouterr().err
    )
    assert main(["report", "out", "--add", "nothing.json"]) == 5


def test_a_damaged_file_of_a_device_is_named_and_a_failed_selftest_refused(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out/devices").mkdir()
    (tmp_path / "out/devices/board.json").write_text("{")
    run = RunDirectory.open(tmp_path / "out")
    assert device_lines(run) == ("'devices/board.json' is damaged: delete it, and add the device's measurements again",)
    host = {"cpu": "board", "machine": "arm", "system": "Linux", "onnxruntime": "1.20", "threads": 1}
    found = {"model_sha256": "0", "device": host, "bench": {"p50_ms": 1.0, "runs": 9, "kept": 1.0}}
    (tmp_path / "failed.json").write_text(json.dumps({**found, "selftest": {"passed": False, "max_abs_diff": 1.0}}))
    assert main(["report", "out", "--add", "failed.json"]) == 2
    assert "failed its self-test" in capsys.readouterr().err


def test_the_card_says_what_the_file_needs(finished: Path) -> None:
    bundle = finished / "out/bundle"
    card = (bundle / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert "The file has opset 18 and IR version 8: it loads in ONNX Runtime 1.14 and newer.\n" in card
    assert f"SHA-256 of model.onnx: `{sha256_file(bundle / 'model.onnx')}`" in card


@pytest.mark.parametrize("sums", ["", "\n", "0" * 64 + "  labels.txt\n"])
def test_sums_that_do_not_name_every_file_are_no_pass(bundle: Path, sums: str) -> None:
    (bundle / "SHA256SUMS").write_text(sums)
    done = alone(bundle, "--selftest")
    assert done.returncode == 1
    assert done.stderr.endswith(" is missing or changed: unpack the bundle again\n")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("threads", ["99999999999", "0", "-1", "1025"])
def test_the_number_of_threads_is_bounded(bundle: Path, threads: str) -> None:
    done = alone(bundle, "--selftest", f"--threads={threads}")
    assert done.returncode == 2
    assert f"--threads is {threads}, but must be a whole number from 1 to 1024" in done.stderr


def test_missing_labels_are_told(bundle: Path) -> None:
    labels = (bundle / "labels.txt").read_text().splitlines()
    (bundle / "labels.txt").write_text("".join(f"{label}\n" for label in labels[:-1]))
    Image.new("RGB", (40, 40)).save(bundle / "photo.png")
    done = alone(bundle, "--image", str(bundle / "photo.png"))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "infer.py: labels.txt has 9 names for 10 classes: unpack the bundle again\n"


def test_a_label_moves_no_cursor(bundle: Path) -> None:
    labels = (bundle / "labels.txt").read_text().splitlines()
    (bundle / "labels.txt").write_text("".join(f"\x1b[31m{label}\n" for label in labels))
    Image.new("RGB", (40, 40)).save(bundle / "photo.png")
    done = alone(bundle, "--image", str(bundle / "photo.png"))
    assert done.returncode == 0
    assert "\x1b" not in done.stdout
    assert done.stdout.count("\\x1b[31m") == 5
