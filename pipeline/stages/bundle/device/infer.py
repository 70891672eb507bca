"""Classify pictures with the model beside this file. Needs numpy, onnxruntime and pillow, nothing else.

python infer.py --image photo.jpg             the five likeliest classes
python infer.py --image photos/ a.png --csv   every picture of a folder and more, a line each; - reads standard input
python infer.py --selftest                    are the files whole, and does this machine compute what was recorded?
python infer.py --bench --json > device.json  the same, and how fast; `atopipe report RUN --add device.json` reads it

The self-test covers all variants beside model.onnx (fp32); --variant NAME says which one classifies or is timed.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import os
import sys
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

sys.dont_write_bytecode = True  # the bundle stays as it was packed
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))  # noqa: PTH100, PTH120  # not there in isolated mode

import numpy as np
from checks import bench, device, printable, selftest, sha256
from network import FULL, failed_gates, model_file, open_model, read_labels, read_settings, run, shares_of, variants
from pictures import Failed, Floats, Settings, read_picture

MOST_THREADS, MOST_AT_ONCE, MOST_SECONDS = 1024, 4096, 3600
SUFFIXES = (".bmp", ".gif", ".jfif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
TOP = 5

Answer = tuple[str, list[tuple[str, float]]]  # a picture's name, its likeliest classes and their probabilities


def pictures_of(given: Iterable[str]) -> Iterator[str]:
    """The names of all pictures: files as they are given, of folders those inside; raises Failed for an empty one."""
    for name in given:
        if name == "-" or not Path(name).is_dir():
            yield name
            continue
        inside = (path for path in sorted(Path(name).rglob("*")) if path.suffix.lower() in SUFFIXES and path.is_file())
        found = [str(path) for path in inside if not path.name.startswith(".")]
        if not found:
            raise Failed(f"folder {name!r} holds no pictures ({', '.join(SUFFIXES)}): give another one")
        yield from found


def read_all(names: Iterable[str], settings: Settings, refused: list[str]) -> Iterator[tuple[str, Floats]]:
    """Every picture that can be read; of the others the reason goes to `refused` and is shown."""
    for name in names:
        try:
            yield name, read_picture(io.BytesIO(sys.stdin.buffer.read()) if name == "-" else Path(name), name, settings)
        except Failed as error:
            refused.append(name)
            complain(str(error))


def classify(pictures: Iterator[tuple[str, Floats]], variant: str, threads: int, batch: int) -> Iterator[Answer]:
    """The likeliest classes of each picture, so many at once."""
    session, labels = open_model(variant, threads), read_labels()
    while part := list(islice(pictures, batch)):
        shares = shares_of(run(session, np.stack([pixels for _, pixels in part])))
        if len(labels) != shares.shape[1]:
            raise Failed(f"labels.txt has {len(labels)} names for {shares.shape[1]} classes: unpack the bundle again")
        for (name, _), row in zip(part, shares):
            yield name, [(labels[index], float(row[index])) for index in row.argsort()[::-1][:TOP]]


def write_text(answers: Iterable[Answer], *, several: bool) -> None:
    for name, classes in answers:
        if several:
            print(f"{classes[0][1]:7.2%}  {printable(classes[0][0])}  {printable(name)}")
        else:
            print("\n".join(f"{share:7.2%}  {printable(label)}" for label, share in classes))


def write_json(answers: Iterable[Answer]) -> None:
    """An object a line."""
    for name, classes in answers:
        print(json.dumps({"image": name, "classes": dict(classes)}))


def write_csv(answers: Iterable[Answer]) -> None:
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(["image", "class", "share"])
    writer.writerows([name, classes[0][0], f"{classes[0][1]:.6f}"] for name, classes in answers)


def classified(options: argparse.Namespace) -> int:
    """Prints what the pictures show; 1 where one of them could not be read."""
    if failed := failed_gates():
        complain(f"this model was rejected where it was made (failed {', '.join(failed)}): do not rely on its answers")
    names, refused = list(pictures_of(options.image)), list[str]()
    pictures = read_all(names, read_settings(), refused)
    answers = classify(pictures, options.variant, options.threads, options.batch)
    if options.csv:
        write_csv(answers)
    elif options.json:
        write_json(answers)
    else:
        write_text(answers, several=len(names) > 1)
    return int(bool(refused))


def checked(options: argparse.Namespace) -> int:
    """Prints what the self-test found, and how fast the model is where that is asked for."""
    result: Settings = {"variant": options.variant, "model_sha256": sha256(model_file(options.variant))}
    result |= {"device": device(options.threads), "selftest": selftest(options.threads)}
    if options.bench:
        result["bench"] = bench(options.variant, options.threads, options.seconds)
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


def complain(sentence: str) -> None:
    print(f"infer.py: {printable(sentence)}", file=sys.stderr)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    task = parser.add_mutually_exclusive_group(required=True)
    task.add_argument(
        "--image", nargs="+", metavar="FILE", help="classify these pictures; folders; - for standard input"
    )
    task.add_argument("--selftest", action="store_true", help="check the bundle on this machine")
    task.add_argument("--bench", action="store_true", help="check the bundle, then measure its latency")
    parser.add_argument("--variant", choices=variants(), default=FULL, help="the model to use (default fp32)")
    parser.add_argument("--threads", type=int, default=1, help="of ONNX Runtime (default 1)")
    parser.add_argument("--batch", type=int, default=1, help="pictures to classify at once (default 1)")
    parser.add_argument("--seconds", type=float, default=5.0, help="of measuring (default 5)")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print JSON, an object for each picture")
    form.add_argument("--csv", action="store_true", help="print the likeliest class of each picture as CSV")
    options = parser.parse_args()
    for name, most in (("threads", MOST_THREADS), ("batch", MOST_AT_ONCE)):
        if not 1 <= getattr(options, name) <= most:
            parser.error(f"--{name} is {getattr(options, name)}, but must be a whole number from 1 to {most}")
    if not 0 < options.seconds <= MOST_SECONDS:
        parser.error(f"--seconds is {options.seconds}, but must be a number above 0 and at most {MOST_SECONDS}")
    return options


def main() -> int:
    options = parsed()
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]  # an ASCII terminal
    try:
        code = classified(options) if options.image else checked(options)
        sys.stdout.flush()  # what cannot be written fails here, not when Python ends
        return code
    except BrokenPipeError:  # who reads has seen enough, as `head -1` has
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:  # of a damaged file, pillow and ONNX Runtime raise whatever they meet
        complain(str(error) or type(error).__name__)
        return 1


if __name__ == "__main__":
    sys.exit(main())
