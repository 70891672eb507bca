"""The programs of the bundle: pictures as in training, folders of them, and every damaged file one sentence."""

import ast
import csv
import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import infer
import network
import numpy as np
import pictures
import pytest
from PIL import Image

from atopipe.pipeline.data.preprocessing import Preprocessing, preprocess


@pytest.fixture
def bundle(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished / "out/bundle", tmp_path / "bundle"))


@pytest.fixture
def photos(tmp_path: Path) -> list[Path]:
    """Three pictures, one of them in a folder below, among files that are none."""
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    found = [folder / "a.png", folder / "b.JPG", folder / "more" / "c.bmp"]
    numbers = np.random.default_rng(0)
    for path in found:
        Image.fromarray(numbers.integers(0, 256, (30, 40, 3), np.uint8)).save(path)
    (folder / "notes.txt").write_text("no picture")
    (folder / ".hidden.png").write_bytes(b"no picture")
    return found


def classified(bundle: Path, *arguments: str, given: bytes | None = None) -> "subprocess.CompletedProcess[bytes]":
    command = [sys.executable, str(bundle / "infer.py"), "--image", *arguments]
    return subprocess.run(command, capture_output=True, timeout=120, check=False, input=given)


def answers(done: "subprocess.CompletedProcess[bytes]") -> dict[str, dict[str, float]]:
    return {found["image"]: found["classes"] for found in map(json.loads, done.stdout.splitlines())}


def test_a_folder_is_classified_as_its_pictures_are_one_by_one(bundle: Path, photos: list[Path]) -> None:
    together = answers(classified(bundle, str(photos[0].parent), "--json", "--batch", "2"))
    assert list(together) == [str(path) for path in photos]
    for path, classes in together.items():
        alone = answers(classified(bundle, path, "--json"))[path]
        assert list(alone) == list(classes)
        assert list(alone.values()) == pytest.approx(list(classes.values()), abs=1e-5)


def test_csv_has_a_row_for_each_picture(bundle: Path, photos: list[Path]) -> None:
    names = [str(path) for path in photos]
    likely = answers(classified(bundle, *names, "--json"))
    best = {name: next(iter(classes.items())) for name, classes in likely.items()}
    rows = list(csv.DictReader(io.StringIO(classified(bundle, *names, "--csv").stdout.decode())))
    assert [(row["image"], row["class"]) for row in rows] == [(name, best[name][0]) for name in names]
    assert [float(row["share"]) for row in rows] == pytest.approx([best[name][1] for name in names], abs=1e-6)


def test_a_picture_may_come_from_standard_input(bundle: Path, photos: list[Path]) -> None:
    piped = answers(classified(bundle, "-", "--json", given=photos[0].read_bytes()))
    assert piped == {"-": answers(classified(bundle, str(photos[0]), "--json"))[str(photos[0])]}


def test_a_damaged_picture_does_not_stop_the_others(bundle: Path, photos: list[Path]) -> None:
    photos[1].write_bytes(photos[1].read_bytes()[:40])
    done = classified(bundle, str(photos[0].parent))
    assert done.returncode == 1
    assert [line.split(b"  ")[-1].decode() for line in done.stdout.splitlines()] == [str(photos[0]), str(photos[2])]
    assert done.stderr.decode().startswith(f"infer.py: {str(photos[1])!r} cannot be read as a picture: ")
    assert done.stderr.count(b"\n") == 1


def test_a_folder_without_pictures_is_told(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    done = classified(bundle, str(tmp_path / "empty"))
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr.decode().startswith(f"infer.py: folder {str(tmp_path / 'empty')!r} holds no pictures (.bmp, ")


def test_a_rejected_model_says_so_before_it_answers(bundle: Path, photos: list[Path]) -> None:
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["gates"][0]["outcome"] = "fail"
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    done = classified(bundle, str(photos[0]))
    assert done.returncode == 0
    assert done.stderr.decode() == (
        "infer.py: this model was rejected where it was made (failed lossless.max_rel_diff): "
        "do not rely on its answers\n"
    )
    for damaged in ("", "[]", "{}", '{"gates": 3}'):
        (bundle / "manifest.json").write_text(damaged)
        assert classified(bundle, str(photos[0])).returncode == 0


@pytest.mark.parametrize("program", ["infer.py", "checks.py", "network.py", "pictures.py"])
def test_the_programs_are_python_3_9(program: str) -> None:
    text = (Path(infer.__file__).with_name(program)).read_text(encoding="utf-8")
    ast.parse(text, feature_version=(3, 9))
    assert "from __future__ import annotations\n" in text
    assert not re.search(r"strict=|\bmatch |removeprefix\(|pairwise", text.partition("import annotations")[2])


def test_transparency_is_told_as_newer_versions_of_pillow_do() -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8, 4), np.uint8))
    made = [noise.convert(mode) for mode in ("RGB", "RGBA", "L", "LA", "P", "1", "CMYK", "PA")]
    marked = noise.convert("P")
    marked.info["transparency"] = 3
    for image in (*made, marked):
        assert pictures.has_transparency(image) == image.has_transparency_data


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(32, 32), (224, 160)])
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "CMYK", "I;16", "1"])
def test_the_preprocessing_is_that_of_training_bit_for_bit(
    mode: str, size: tuple[int, int], interpolation: str
) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (97, 131, 4), np.uint8)
    if mode == "I;16":
        image = Image.fromarray(noise[:, :, 0].astype(np.uint16) * 257)
    else:
        image = Image.fromarray(noise).convert(mode) if mode != "CMYK" else Image.fromarray(noise, mode="CMYK")
    margin = (size[0] + 32, size[1] + 32)
    settings = Preprocessing(size, margin, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 3, interpolation)
    assert Preprocessing.from_json(settings.to_json()) == settings
    got = pictures.preprocess(image, json.loads(settings.to_json()))
    np.testing.assert_array_equal(got, preprocess(image, settings))


SETTINGS = Preprocessing((32, 32), (36, 36), (0.5, 0.5, 0.5), (0.2, 0.2, 0.2))


@pytest.mark.parametrize("size", [(40, 60), (3, 400), (900, 2), (1, 30_000)])
@pytest.mark.parametrize("orientation", [1, 3, 6, 7])
def test_a_turned_image_or_a_strip_is_prepared_as_in_training(size: tuple[int, int], orientation: int) -> None:
    image = Image.fromarray(np.random.default_rng(1).integers(0, 256, (*size, 3), np.uint8))
    image.getexif()[0x0112] = orientation
    np.testing.assert_array_equal(
        pictures.preprocess(image, json.loads(SETTINGS.to_json())), preprocess(image, SETTINGS)
    )


@pytest.mark.parametrize("suffix", ["tiff", "png", "jpg"])
def test_a_file_is_prepared_as_in_training(tmp_path: Path, suffix: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 8
    Image.fromarray(np.random.default_rng(1).integers(0, 256, (40, 60, 3), np.uint8)).save(
        tmp_path / f"a.{suffix}", exif=exif
    )
    images = [Image.open(tmp_path / f"a.{suffix}") for _ in range(2)]
    got = pictures.preprocess(images[0], json.loads(SETTINGS.to_json()))
    np.testing.assert_array_equal(got, preprocess(images[1], SETTINGS))


NO_RANGE = "the picture has numbers whose range nothing defines: "
TOO_LARGE = "has more than 178 megapixels, the most that is decoded: scale it down"


def bad_pictures() -> dict[str, tuple[Image.Image | bytes, str]]:
    ramp = np.linspace(0, 1, 256, dtype=np.float32).reshape(16, 16)
    return {
        "float.tiff": (Image.fromarray(ramp), NO_RANGE),
        "integers.tiff": (
            Image.fromarray(ramp.astype(np.int32)),
            NO_RANGE,
        ),
        "huge.png": (
            Image.new("1", (20_000, 9_000)),
            "has more than 178 megapixels, the most that is decoded: scale it down",
        ),
        "empty.png": (b"", "cannot be read as a picture: "),
        "header.png": (b"\x89PNG\r\n\x1a\n" + bytes(40), "cannot be read as a picture: "),
        "text.jpg": (b"not a picture", "cannot be read as a picture: "),
        "cut.webp": (b"RIFF\xff\xff\xff\xffWEBPVP8 ", "cannot be read as a picture: "),
    }


@pytest.mark.parametrize("name", bad_pictures())
def test_a_picture_that_is_none_is_one_sentence(tmp_path: Path, name: str) -> None:
    content, words = bad_pictures()[name]
    path = tmp_path / name
    path.write_bytes(content) if isinstance(content, bytes) else content.save(path)
    with pytest.raises(pictures.Failed) as caught:
        pictures.read_picture(path, name, json.loads(SETTINGS.to_json()))
    assert words in str(caught.value)


def test_two_hundred_damaged_pictures_end_in_one_sentence_each(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(network, "HERE", bundle)
    pixels, whole = np.random.default_rng(0).integers(0, 255, (40, 50, 3), np.uint8), []
    for kind in ("png", "jpeg", "gif", "bmp", "tiff", "webp"):
        Image.fromarray(pixels).save(bundle / f"photo.{kind}")
        whole.append((bundle / f"photo.{kind}").read_bytes())
    generator, codes = np.random.default_rng(1), set()
    for number in range(200):
        content = bytearray(whole[number % len(whole)])
        if number % 3 == 0:
            del content[int(generator.integers(1, len(content))) :]
        for place in generator.integers(0, min(len(content), 400), 6):
            content[place] = generator.integers(0, 256)
        (bundle / "fuzzed").write_bytes(content)
        monkeypatch.setattr(sys, "argv", ["infer.py", "--image", str(bundle / "fuzzed")])
        codes.add(infer.main())
        said = capsys.readouterr().err
        assert said.count("\n") == (1 if said else 0)
        assert not said or said.startswith("infer.py: ")
    assert codes == {0, 1}


@pytest.mark.parametrize("seconds", ["nan", "inf", "-inf", "-1", "0", "1e9"])
def test_the_time_of_measuring_is_bounded(
    seconds: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["infer.py", "--bench", f"--seconds={seconds}"])
    with pytest.raises(SystemExit) as caught:
        infer.main()
    assert caught.value.code == 2
    words = f"--seconds is {float(seconds)}, but must be a number above 0 and at most 3600\n"
    assert capsys.readouterr().err.endswith(words)


def test_what_is_no_file_is_not_waited_for(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(network, "HERE", bundle)
    os.mkfifo(bundle / "pipe")
    for name in (bundle / "pipe", bundle / "none.png", Path("/dev/zero")):
        monkeypatch.setattr(sys, "argv", ["infer.py", "--image", str(name)])
        assert infer.main() == 1
        words = f"'{name}' is not a file: give the path of a picture, or - for standard input"
        assert capsys.readouterr().err == f"infer.py: {words}\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_an_answer_that_cannot_be_written_is_an_error(bundle: Path, photos: list[Path]) -> None:
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, str(bundle / "infer.py"), "--image", str(photos[0])]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "infer.py: [Errno 28] No space left on device\n")


def test_a_reader_that_has_seen_enough_is_no_error(bundle: Path, photos: list[Path]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, str(bundle / "infer.py"), "--image", str(photos[0])]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, "")
