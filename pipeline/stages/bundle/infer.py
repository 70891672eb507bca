"""Classify images with the model beside this file. Needs numpy, onnxruntime and pillow, nothing else.

python infer.py --image photo.jpg             the five likeliest classes
python infer.py --selftest                    are the files whole, and does this machine compute what was recorded?
python infer.py --bench --json > device.json  the same, and how fast; `atopipe report RUN --add device.json` reads it

The self-test covers all variants beside model.onnx (fp32); --variant NAME says which one classifies or is timed.
"""

import argparse
import hashlib
import json
import platform
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from PIL import Image

HERE = Path(__file__).resolve().parent
FULL = "fp32"
TOLERANCES = {FULL: 1e-4, "fp16": 0.02, "int8": 0.25}  # of the logits' deviation; less exact kernels round differently
PHOTO_TOLERANCE = 2.5 / 255  # of a pixel: another version of pillow may round differently
TURNS = {  # what undoes each value of the EXIF tag
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
STRETCHED = 16  # a picture that scaled as a whole takes so many times the pixels asked for is cut first
DISTURBED, MOST_THREADS = 1.05, 1024  # a run that took this many times its processor time waited for another process
FILES = ("infer.py", "labels.txt", "preprocess.json", "samples/samples.npz")

Floats = NDArray[np.float32]
Settings = dict[str, Any]


class Failed(Exception):
    """The bundle is not what it should be here. One sentence."""


def preprocess(image: Image.Image, settings: Settings) -> Floats:
    """Turn an image into the network's input [3, H, W], as preprocess.json says."""
    resampling = Image.Resampling[settings["interpolation"].partition(",")[0].upper()]
    return normalise(to_pixels(image, settings["resize"], settings["size"], resampling), settings)


def to_pixels(
    image: Image.Image, resize: tuple[int, int], crop: tuple[int, int], resampling: Image.Resampling
) -> NDArray[np.uint8]:
    """Upright, over white, RGB, scaled to just cover `resize`, and the central `crop` of that: uint8 [3, H, W]."""
    if image.mode == "F" or (image.mode == "I" and image.format not in ("PNG", "PPM")):
        raise Failed("the picture has numbers whose range nothing defines: save it with 8 or 16 bits a channel")
    image = to_rgb(upright(image))
    scale = max(resize[0] / image.height, resize[1] / image.width)
    height, width = max(resize[0], round(image.height * scale)), max(resize[1], round(image.width * scale))
    top, left = (height - crop[0]) // 2, (width - crop[1]) // 2
    if height * width > STRETCHED * resize[0] * resize[1]:  # cut before it is enlarged
        down, across = image.height / height, image.width / width
        box = (left * across, top * down, (left + crop[1]) * across, (top + crop[0]) * down)
        image = image.resize((crop[1], crop[0]), resampling, box)
        top, left = 0, 0
    elif (height, width) != (image.height, image.width):
        image = image.resize((width, height), resampling)
    return np.asarray(image)[top : top + crop[0], left : left + crop[1]].transpose(2, 0, 1)


def upright(image: Image.Image) -> Image.Image:
    """Turned as the EXIF data says, if they can be read."""
    image.load()  # some formats know what is to be turned, or have turned it, only now
    try:
        turn = TURNS.get(image.getexif().get(0x0112, 1))
    except Exception:  # the parser raises nearly anything on broken bytes, and the pixels are whole
        return image
    return image if turn is None else image.transpose(turn)


def to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16 bits of grey
        return Image.fromarray((np.asarray(image) // 257).clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def normalise(pixels: NDArray[np.uint8], settings: Settings) -> Floats:
    """uint8 [..., 3, H, W] -> float32: divided by 255, less the mean, divided by the deviation, per channel."""
    mean, std = (np.asarray(settings[name], np.float32)[:, None, None] for name in ("mean", "std"))
    result: Floats = (pixels.astype(np.float32) / np.float32(255) - mean) / std
    return result


def variants() -> list[str]:
    """The names of what is here: fp32 first."""
    return [FULL, *sorted(path.name.split(".")[1] for path in HERE.glob("model.*.onnx"))]


def model_file(variant: str) -> Path:
    return HERE / ("model.onnx" if variant == FULL else f"model.{variant}.onnx")


def open_model(variant: str, threads: int) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return ort.InferenceSession(str(model_file(variant)), options, providers=["CPUExecutionProvider"])


def run(session: ort.InferenceSession, images: Floats) -> Floats:
    logits: Floats = session.run(None, {session.get_inputs()[0].name: images})[0]
    return logits


def read_labels() -> list[str]:
    return (HERE / "labels.txt").read_text(encoding="utf-8").splitlines()


def read_settings() -> Settings:
    settings: Settings = json.loads((HERE / "preprocess.json").read_text(encoding="utf-8"))
    return settings


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def classify(path: Path, variant: str, threads: int) -> list[tuple[str, float]]:
    """The five likeliest classes and their probabilities."""
    logits = run(open_model(variant, threads), read_picture(path)[None])[0].astype(np.float64)
    shares = np.exp(logits - logits.max())
    shares /= shares.sum()
    labels = read_labels()
    if len(labels) != len(shares):
        raise Failed(f"labels.txt has {len(labels)} names for {len(shares)} classes: unpack the bundle again")
    return [(labels[index], float(shares[index])) for index in shares.argsort()[::-1][:5]]


def read_picture(path: Path) -> Floats:
    """The network's input for a file; raises Failed for one that is no picture, damaged, or over 178 megapixels."""
    settings = read_settings()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path) as image:
                return preprocess(image, settings)
    except (Failed, MemoryError):
        raise
    except Image.DecompressionBombError as error:
        raise Failed(f"{str(path)!r} has more than 178 megapixels, the most that is decoded: scale it down") from error
    except Exception as error:  # decoders raise nearly anything on broken bytes
        raise Failed(f"{str(path)!r} cannot be read as a picture: {error or type(error).__name__}") from error


def selftest(threads: int) -> Settings:
    """Files, preprocessing and logits against what was recorded; raises Failed at the first that differs."""
    check_sums()
    settings, sessions = read_settings(), {name: open_model(name, threads) for name in variants()}
    for name, session in sessions.items():
        check_metadata(session.get_modelmeta().custom_metadata_map, model_file(name).name, settings)
    with np.load(HERE / "samples" / "samples.npz") as samples:
        pixels, images = samples["pixels"], samples["images"]
        wanted = {name: samples["logits" if name == FULL else f"logits_{name}"] for name in sessions}
        photo = preprocess(Image.fromarray(samples["photo"]), settings)
        photo_off = float(np.abs((photo - samples["photo_input"]) * np.asarray(settings["std"])[:, None, None]).max())
    if np.abs(normalise(pixels, settings) - images).max() > 1e-6:
        raise Failed("the pixels of the samples do not give the recorded input: mean or std is wrong")
    if photo_off > PHOTO_TOLERANCE:
        raise Failed(f"a photo is not resized and cropped as recorded: a pixel differs by {255 * photo_off:.1f} of 255")
    off = {name: difference(name, session, images, wanted[name]) for name, session in sessions.items()}
    found: Settings = {"passed": True, "samples": len(images), "max_abs_diff": off[FULL], "photo_max_diff": photo_off}
    return {**found, "variants": off}


def check_sums() -> None:
    """Raises Failed where SHA256SUMS does not name every file of the bundle with its digest."""
    lines = (line.partition("  ") for line in (HERE / "SHA256SUMS").read_text(encoding="utf-8").splitlines())
    digests = {name: digest for digest, _, name in lines}
    here = {*FILES, *(model_file(variant).name for variant in variants())}
    for name in sorted(here | digests.keys()):
        if name not in digests or not (HERE / name).is_file() or sha256(HERE / name) != digests[name]:
            raise Failed(f"{printable(name)} is missing or changed: unpack the bundle again")


def printable(text: str) -> str:
    """What moves a terminal's cursor or cannot be encoded is written as an escape."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def check_metadata(stored: dict[str, str], file: str, settings: Settings) -> None:
    """Raises Failed if the labels or the preprocessing in a model are not those beside it."""
    if json.loads(stored["labels"]) != read_labels():
        raise Failed(f"labels.txt does not hold the labels that are stored in {file}")
    if json.loads(stored["preprocessing"]) != settings:
        raise Failed(f"preprocess.json does not hold the preprocessing that is stored in {file}")


def difference(variant: str, session: ort.InferenceSession, images: Floats, wanted: Floats) -> float:
    """How far a logit is off, one image at a time and all at once; raises Failed if it is too far."""
    off = max(float(np.abs(run(session, images[:size]) - wanted[:size]).max()) for size in (1, len(images)))
    limit = TOLERANCES[variant] * float(wanted.std())
    if not off <= limit:  # a logit that is not a number fails as well
        found = f"a logit of {model_file(variant).name} differs by {off:.3g}, but at most {limit:.3g} is allowed"
        raise Failed(f"{found}: this machine computes different results")
    return off


def bench(variant: str, threads: int, seconds: float) -> Settings:
    """Load time, and the latency after warm-up; without runs which lost the processor, where its clock can tell."""
    start = time.perf_counter()
    session = open_model(variant, threads)
    load_ms = 1e3 * (time.perf_counter() - start)
    with np.load(HERE / "samples" / "samples.npz") as samples:
        images = samples["images"]
    kind: Any = "thread_time" if threads == 1 else "process_time"
    clock = getattr(time, kind) if time.get_clock_info(kind).resolution <= 1e-4 else time.perf_counter
    rows, begin = list[tuple[float, float]](), time.perf_counter()
    while len(rows) < 10 or time.perf_counter() - begin < 1.2 * seconds:
        wall, cpu = time.perf_counter(), clock()
        run(session, images[len(rows) % len(images)][None])
        rows.append((time.perf_counter() - wall, clock() - cpu))
    counted = np.array(rows[len(rows) // 6 :])  # the first sixth of the time is warm-up
    kept = counted[counted[:, 0] <= DISTURBED * counted[:, 1], 0]
    if not len(kept):
        raise Failed("every run was preempted: stop other programs and try again")
    result: Settings = {"p50_ms": 1e3 * float(np.median(kept)), "runs": len(kept), "kept": len(kept) / len(counted)}
    if len(kept) >= 64:  # fewer do not know the tail
        result["p90_ms"] = 1e3 * float(np.quantile(kept, 0.9))
    return {**result, "load_ms": load_ms}


def device(threads: int) -> Settings:
    return {
        "cpu": cpu_name(),
        "machine": platform.machine(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "onnxruntime": ort.__version__,
        "threads": threads,
    }


def cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text("utf-8", "replace").splitlines() if info.exists() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith(("model name", "Model"))]
    return named[0] if named else platform.processor() or platform.machine()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    task = parser.add_mutually_exclusive_group(required=True)
    task.add_argument("--image", type=Path, metavar="FILE", help="classify this image")
    task.add_argument("--selftest", action="store_true", help="check the bundle on this machine")
    task.add_argument("--bench", action="store_true", help="check the bundle, then measure its latency")
    parser.add_argument("--variant", choices=variants(), default=FULL, help="the model to use (default fp32)")
    parser.add_argument("--threads", type=int, default=1, help="of ONNX Runtime (default 1)")
    parser.add_argument("--seconds", type=float, default=5.0, help="of measuring (default 5)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    if not 1 <= options.threads <= MOST_THREADS:
        parser.error(f"--threads is {options.threads}, but must be a whole number from 1 to {MOST_THREADS}")
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]  # an ASCII terminal
    try:
        if options.image:
            found = classify(options.image, options.variant, options.threads)
            lines = "\n".join(f"{share:7.2%}  {printable(name)}" for name, share in found)
            print(json.dumps(dict(found)) if options.json else lines)
            return 0
        result = {"variant": options.variant, "model_sha256": sha256(model_file(options.variant))}
        result |= {"device": device(options.threads), "selftest": selftest(options.threads)}
        if options.bench:
            result["bench"] = bench(options.variant, options.threads, options.seconds)
    except Exception as error:  # of a damaged file, pillow and ONNX Runtime raise whatever they meet
        print(f"infer.py: {printable(str(error)) or type(error).__name__}", file=sys.stderr)
        return 1
    print(json.dumps(result, indent=2) if options.json else as_text(result))
    return 0


def as_text(result: Settings) -> str:
    test = result["selftest"]
    off = ", ".join(f"{name} {value:.3g}" for name, value in test["variants"].items())
    lines = [f"selftest passed: {test['samples']} samples, logits differ by at most: {off}"]
    if "bench" in result:
        timed, cpu = result["bench"], result["device"]["cpu"]
        lines += [f"latency of {result['variant']}: {timed['p50_ms']:.3g} ms (median of {timed['runs']} runs, {cpu})"]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
