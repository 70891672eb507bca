"""A packed copy and WebDataset's shards: what they hold, resuming, and what is wrong with one."""

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from atopipe.pipeline.cli.main import main
from atopipe.pipeline.data.load import find_source, load_data
from atopipe.pipeline.data.photographs import pack as packing
from atopipe.pipeline.data.photographs.pack import packed_picture, verify_pack
from atopipe.pipeline.data.preprocessing import ORIENTATION
from atopipe.pipeline.system.errors import DataError


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    numbers = np.random.default_rng(0)
    for part, count in (("train", 7), ("val", 3)):
        for label in ("cat", "dög"):
            (tmp_path / "photos" / part / label).mkdir(parents=True)
            for index in range(count):
                coarse = Image.fromarray(numbers.integers(0, 256, (6, 8, 3), dtype=np.uint8))
                coarse.resize((128, 96)).save(tmp_path / "photos" / part / label / f"{index}.jpg", quality=90)
    return tmp_path / "photos"


def packed(photos: Path, *options: str) -> Path:
    output = photos.parent / "packed"
    assert main(["pack", str(photos), str(output), *options]) == 0
    return output


def test_a_packed_copy_holds_the_folder(photos: Path) -> None:
    """Classes and order are the same, and validation images are the same to the last bit."""
    folder, copy = load_data(f"imagefolder:{photos}", seed=0), load_data(f"webdataset:{packed(photos)}", seed=0)
    assert copy.labels == folder.labels == ("cat", "dög")
    for ours, theirs in ((copy.train, folder.train), (copy.val, folder.val)):
        assert torch.equal(ours.labels, theirs.labels)
    (seen, _), (wanted, _) = (next(iter(data.val.batches(6, device="cpu"))) for data in (copy, folder))
    assert torch.equal(seen, wanted)
    assert copy.preprocessing == folder.preprocessing
    batches = [d.train.batches(7, device="cpu", generator=torch.Generator().manual_seed(1)) for d in (copy, folder)]
    assert all(torch.equal(a[0], b[0]) for a, b in zip(*batches, strict=True))  # small files are copied as they are


def test_pictures_are_scaled_down_upright_and_only_where_they_are_larger(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8))
    picture.save(tmp_path / "turned.jpg", exif=exif)
    picture.save(tmp_path / "a.png")
    picture.save(tmp_path / "small.jpg")
    sizes = {}
    for name, side in (("turned.jpg", 45), ("a.png", 45), ("small.jpg", 90), ("a.png", 500)):
        with Image.open(io.BytesIO(packed_picture(tmp_path / name, side))) as image:
            assert image.format == "JPEG"
            sizes[name, side] = image.size
    assert list(sizes.values()) == [(45, 60), (60, 45), (120, 90), (120, 90)]
    assert packed_picture(tmp_path / "small.jpg", 90) == (tmp_path / "small.jpg").read_bytes()


def test_an_interrupted_copy_goes_on_behind_its_last_shard(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "IN_A_SHARD", 4)
    whole = packed(photos)
    wanted = {path.name: path.read_bytes() for path in whole.iterdir()}
    assert len(verify_pack(whole)) == 6
    written, write = [], packing._write_shard

    def interrupted(path: Path, *arguments: object) -> None:
        written.append(path.name)
        if len(written) == 3:
            raise KeyboardInterrupt
        write(path, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(packing, "_write_shard", interrupted)
    again = photos.parent / "again"
    assert main(["pack", str(photos), str(again)]) == 130
    assert main(["pack", str(photos), str(again)]) == 0
    assert written.count("train-000000.tar") == written.count("train-000001.tar") == 1
    assert {path.name: path.read_bytes() for path in again.iterdir()} == wanted


def test_a_damaged_or_foreign_copy_is_refused(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = packed(photos)
    assert main(["pack", str(photos), str(output), "--short-side", "64"]) == 2
    assert "is a copy of other images, or at another short side" in capsys.readouterr().err
    shard = output / "train-000000.tar"
    content = bytearray(shard.read_bytes())
    content[700] ^= 1
    shard.write_bytes(content)
    assert main(["pack", str(photos), str(output), "--check"]) == 2
    assert "train-000000.tar' is not as it was packed" in capsys.readouterr().err
    shard.write_bytes(content[:3000])
    with pytest.raises(DataError, match=r"^shard '.*train-000000\.tar' is damaged"):
        load_data(f"webdataset:{output}", seed=0)


def test_a_disk_without_room_is_refused_before_anything_is_written(
    photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda place: type("Usage", (), {"free": 10})())
    assert main(["pack", str(photos), str(photos.parent / "packed")]) == 5
    assert "GB free: free some, or choose another folder" in capsys.readouterr().err
    assert not (photos.parent / "packed").exists()


def write_shard(path: Path, files: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def test_shards_that_do_not_fit_together_are_refused(photos: Path, tmp_path: Path) -> None:
    jpeg, folder = (photos / "train/cat/0.jpg").read_bytes(), tmp_path / "shards"
    folder.mkdir()

    def shards(train: dict[str, bytes]) -> str:
        write_shard(
            folder / "train-0000.tar", {"x/a.b.jpg": jpeg, "x/a.cls": b"1", "x/c.JPEG": jpeg, "x/c.cls": b"0\n"}
        )
        write_shard(folder / "train-0001.tar", train)
        write_shard(folder / "val-0000.tar", {"a.jpg": jpeg, "a.cls": b"0"})
        return f"webdataset:{folder}"

    data = load_data(shards({"d.png": jpeg, "d.json": b"{}", "d.cls": b"1"}), seed=0, input_size=80)
    assert (data.labels, data.train.labels.tolist()) == (("0", "1"), [0, 1])  # 'a.b.jpg' has the suffix b.jpg
    with pytest.raises(DataError, match=r"has no class of 'd': add d\.cls with its number$"):
        load_data(shards({"d.jpg": jpeg}), seed=0)
    with pytest.raises(DataError, match=r"has the class b'cat' in 'd\.cls': give its number"):
        load_data(shards({"d.jpg": jpeg, "d.cls": b"cat"}), seed=0)
    (folder / "classes.txt").write_text("a\nb\n")
    with pytest.raises(DataError, match=r"has shards with the class number 2, but 2 names in classes\.txt$"):
        load_data(shards({"d.jpg": jpeg, "d.cls": b"2"}), seed=0)
    (folder / "train-0001.tar").rename(folder / "train-0002.tar")
    with pytest.raises(DataError, match="has no train shard number 1: fetch it, or rename those behind it"):
        load_data(f"webdataset:{folder}", seed=0)


def test_a_shard_that_vanishes_during_an_epoch_is_read_on(photos: Path) -> None:
    """It is mapped: the system keeps it as long as it is used."""
    output = packed(photos)
    data = load_data(f"webdataset:{output}", seed=0)
    batches = iter(data.train.batches(2, device="cpu", generator=torch.Generator().manual_seed(0)))
    next(batches)
    (output / "train-000000.tar").unlink()
    assert len(list(batches)) == 6


def test_shards_are_fingerprinted(photos: Path) -> None:
    output = packed(photos)
    source, argument = find_source(f"webdataset:{output}")
    assert sorted(Path(name).name for name in source.files(argument)) == [
        "classes.txt",
        "train-000000.tar",
        "val-000000.tar",
    ]
    assert all(path.is_file() for path in source.files(argument).values())
