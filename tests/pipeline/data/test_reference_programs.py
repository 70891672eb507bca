"""The programs of docs/reference/preprocessing against the pipeline's own preprocessing, bit for bit."""

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from atopipe.pipeline.data.preprocessing import Preprocessing, preprocess

PROGRAMS = Path(__file__).parents[3] / "docs/reference/preprocessing"
PICTURES = 100
WAYS = ("bilinear", "bicubic", "lanczos")


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("no C++ compiler is installed")
    program = tmp_path_factory.mktemp("compiled") / "preprocess"
    options = ["-O2", "-std=c++17", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror"]
    subprocess.run([compiler, *options, str(PROGRAMS / "preprocess.cpp"), "-o", str(program)], check=True)
    return [str(program)]


def random_case(numbers: np.random.Generator, number: int) -> tuple[np.ndarray, Preprocessing]:
    """A picture from 1x1 to 700x700, a strip now and then, and the preprocessing of some network."""
    height, width = (int(side) for side in np.exp(numbers.uniform(0, np.log(700), 2)))
    if number % 10 == 0:
        height, width = [(1, 9000), (5000, 2)][number // 10 % 2]
    pixels = numbers.integers(0, 256, (height, width, 3), np.uint8)
    if number % 4 == 1:  # overshoot, and sums that lie between two levels
        pixels = (pixels > 128).astype(np.uint8) * 255
    size = (int(numbers.integers(1, 130)), int(numbers.integers(1, 130)))
    resize = (size[0] + int(numbers.integers(0, 40)), size[1] + int(numbers.integers(0, 40)))
    mean, std = (tuple(round(float(v), 6) for v in numbers.uniform(*limits, 3)) for limits in ((0, 1), (0.1, 0.4)))
    return pixels, Preprocessing(size, resize, mean, std, 3, WAYS[number % 3])


def words(settings: Preprocessing) -> str:
    return " ".join(map(str, (settings.interpolation, *settings.resize, *settings.size, *settings.mean, *settings.std)))


def compare(command: list[str], settings_file: str, folder: Path, seed: int) -> None:
    numbers = np.random.default_rng(seed)
    for number in range(PICTURES):
        pixels, settings = random_case(numbers, number)
        Image.fromarray(pixels).save(folder / "picture.ppm")
        (folder / "preprocess.json").write_text(settings.to_json())
        (folder / "preprocess.txt").write_text(words(settings))
        done = subprocess.run(
            [*command, str(folder / "picture.ppm"), str(folder / settings_file)], capture_output=True, check=True
        )
        wanted = preprocess(Image.fromarray(pixels), settings)
        got = np.frombuffer(done.stdout, np.float32).reshape(wanted.shape)
        np.testing.assert_array_equal(got, wanted, err_msg=f"{pixels.shape} {settings}")


def test_the_program_in_c_gives_the_same_bits(compiled: list[str], tmp_path: Path) -> None:
    compare(compiled, "preprocess.txt", tmp_path, seed=0)


def test_the_program_in_javascript_gives_the_same_bits(tmp_path: Path) -> None:
    if shutil.which("node") is None:
        pytest.skip("no Node.js is installed")
    compare(["node", str(PROGRAMS / "preprocess.mjs")], "preprocess.json", tmp_path, seed=1)
