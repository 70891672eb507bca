"""What a run reads from outside: a digest changes when a content does, and only then."""

import os
import sys
import time
from pathlib import Path

import pytest

from atopipe.pipeline.config.load import load_config
from atopipe.pipeline.rundir.external_inputs import fingerprints, libraries_of
from atopipe.pipeline.system.code_files import code_files

CODE = {
    "net.py": "import helper\nfrom pkg import part\nimport os, torch\n\ndef net(): ...\n",
    "helper.py": "",
    "unrelated.py": "",
    "pkg/__init__.py": "",
    "pkg/part.py": "from . import sibling\nfrom .deep.leaf import x\n",
    "pkg/sibling.py": "",
    "pkg/other.py": "",
    "pkg/deep/__init__.py": "from ..top import y\n",
    "pkg/deep/leaf.py": "this is no Python\n",
    "pkg/top.py": "",
}
NEEDED = {*CODE} - {"unrelated.py", "pkg/other.py"}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with code, weights and an image folder."""
    files = {**CODE, "weights.safetensors": "w", "notes.txt": "n", ".hidden/train/x.png": "h"}
    files |= {f"images/{part}/{label}/1.png": f"{part}{label}" for part in ("train", "val") for label in "ab"}
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    return tmp_path


def look(model: str = "net:net", data: str = "imagefolder:images", weights: str | None = None) -> dict[str, str]:
    values = {"model.name": model, "data.source": data, "target_flops": 0.5, "model.weights": weights}
    return fingerprints(load_config(None, values), Path("inputs.json"))


@pytest.mark.parametrize("factory", ["net:net", "net.py:net", "./net.py:net"])
def test_the_code_is_the_module_and_what_it_imports_from_beside_it(here: Path, factory: str) -> None:
    assert set(code_files(factory)) == NEEDED


def test_an_installed_package_is_followed_within_itself(here: Path) -> None:
    files = code_files("click.core:Command")
    assert {"core.py", "__init__.py", "exceptions.py"} <= set(files)
    assert all(path.parts[-2] == "click" for path in files.values())
    (here / "click").mkdir()  # Python prefers the installed package to a plain folder
    assert code_files("click.core:Command") == files


def test_code_that_is_not_there_has_no_files(here: Path) -> None:
    assert code_files("absent:net") == code_files("absent.py:net") == {}


@pytest.mark.parametrize(
    ("file", "changed"),
    [
        ("helper.py", {"model code"}),
        ("pkg/top.py", {"model code"}),
        ("unrelated.py", set()),
        ("images/train/a/1.png", {"data"}),
        ("images/val/b/1.png", {"data"}),
        ("weights.safetensors", {"weights"}),
        ("notes.txt", set()),
    ],
)
def test_a_content_of_the_same_size_shows_where_it_matters(here: Path, file: str, changed: set[str]) -> None:
    before = look(weights="weights.safetensors")
    path = here / file
    path.write_text("#" * len(path.read_text()) if path.read_text() else "#")
    after = look(weights="weights.safetensors")
    assert {name for name in before if before[name] != after[name]} == changed


def test_a_new_time_alone_changes_nothing(here: Path) -> None:
    before = look()
    os.utime(here / "images/train/a/1.png", (1, 1))
    assert look() == before


@pytest.mark.parametrize("change", ["added", "removed", "renamed", "moved to another class"])
def test_every_change_of_the_files_shows(here: Path, change: str) -> None:
    before, image = look()["data"], here / "images/train/a/1.png"
    if change == "added":
        (here / "images/train/a/2.png").write_text("new")
    elif change == "removed":
        image.unlink()
    else:
        image.rename(here / ("images/train/a/3.png" if change == "renamed" else "images/train/b/2.png"))
    assert look()["data"] != before


def test_what_the_source_does_not_read_does_not_count(here: Path) -> None:
    before = look()
    for name in ("runs/metrics.json", "train/.cache", "train/a/Thumbs.db", "test/a/1.png"):
        (here / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        (here / "images" / name).write_text("x")
    assert look() == before


def test_images_behind_a_link_count(here: Path) -> None:
    (here / "images/train/a").rename(here / "elsewhere")
    (here / "images/train/a").symlink_to(here / "elsewhere")
    before = look()["data"]
    (here / "elsewhere/1.png").write_text("another")
    assert look()["data"] != before


def test_the_files_of_cifar_count_and_what_lies_beside_them_does_not(here: Path) -> None:
    (here / "cifar/cifar-10-batches-bin").mkdir(parents=True)
    batch = here / "cifar/cifar-10-batches-bin/data_batch_1.bin"
    batch.write_text("x")
    before = look(data="cifar10:cifar")
    (here / "cifar/notes.md").write_text("x")
    assert look(data="cifar10:cifar") == before
    batch.write_text("y")
    assert look(data="cifar10:cifar") != before


def test_the_library_behind_a_network_or_the_images_counts(here: Path) -> None:
    config = load_config(None, {"model.name": "timm/resnet18", "data.source": "digits", "target_flops": 0.5})
    assert libraries_of(config, ("model", "data", "seed")) == ["timm", "scikit-learn"]
    assert libraries_of(config, ("seed",)) == []


def test_the_contents_are_read_again_only_if_something_looks_different(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = look()
    monkeypatch.setattr(
        "atopipe.pipeline.rundir.external_inputs.sha256_file", lambda path: pytest.fail(f"{path} was read")
    )
    assert look() == before


def test_of_a_large_set_size_and_time_count_and_on_request_the_contents(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = look()["data"]
    monkeypatch.setattr("atopipe.pipeline.rundir.external_inputs.MANY", 3)
    values = {"model.name": "net:net", "data.source": "imagefolder:images", "target_flops": 0.5}
    assert fingerprints(load_config(None, {**values, "data.fingerprint": "content"}), Path("x.json"))["data"] == content
    before = look()["data"]
    assert before not in (content, look(data="net:net").get("data"))
    file = here / "images/train/a/1.png"
    os.utime(file, ns=(5, file.stat().st_mtime_ns + 1))
    touched = look()["data"]
    assert touched != before
    file.rename(file.with_name("2.png"))
    assert look()["data"] not in (before, touched)


def test_who_is_told_to_end_does_not_read_the_rest_first(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = []

    def interrupted(path: Path) -> str:
        read.append(path)
        time.sleep(0.01)
        raise KeyboardInterrupt

    for number in range(200):
        (here / f"images/train/a/{number}.png").write_text("")
    monkeypatch.setattr("atopipe.pipeline.rundir.external_inputs.sha256_file", interrupted)
    with pytest.raises(KeyboardInterrupt):
        look(data="imagefolder:images", model="resnet18")
    assert len(read) < 100


def test_what_is_not_there_is_taken_to_be_as_it_was(here: Path) -> None:
    before = look()
    (here / "images").rename(here / "elsewhere")
    assert look() == before


def test_a_damaged_record_is_written_anew(here: Path) -> None:
    before = look()
    record = here / "inputs.json"
    record.write_text(record.read_text().replace(before["data"], "0" * 64))
    assert look() == before
    assert before["data"] in record.read_text()


def test_names_of_torchvision_and_digits_read_nothing(here: Path) -> None:
    assert look("resnet18", "digits") == {}
