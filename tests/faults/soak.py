"""The long version of the tests beside it; each result is a line of benchmarks/results/faults.jsonl.

python tests/faults/soak.py kills --count 50     # about half an hour on one core
python tests/faults/soak.py flips --count 200
python tests/faults/soak.py fuzz                 # 400 inputs of each of five kinds
python tests/faults/soak.py pictures             # 200 damaged pictures for the bundle's infer.py
python tests/faults/soak.py cost                 # what checkpoints take of the time of training
"""

import contextlib
import io
import json
import random
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
from harness import (
    FORMATS,
    INTERVAL_MINUTES,
    committed,
    digests,
    finish,
    flip_bit,
    furnish,
    kill_after,
    mutated,
    problems,
    working_in,
)
from PIL import Image

from atopipe.pipeline.cli.main import main as atopipe
from atopipe.pipeline.system.machine import hardware, library_versions

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "faults.jsonl"
LIBRARIES = ("atopipe", "torch", "onnxruntime", "numpy")


@click.group()
def soak() -> None:
    """Kills, flipped bits and fuzzed input, many times."""


@soak.command()
@click.option("--count", default=50, show_default=True)
@click.option("--seed", default=0, show_default=True)
def kills(count: int, seed: int) -> None:
    """Kill a run at a random moment, start it again, compare its bytes with those of one that was not killed."""
    draw, folder = random.Random(seed), furnish(Path(tempfile.mkdtemp()))
    seconds = finish(folder, "whole")
    wanted, found = digests(folder / "whole"), []
    for number in range(count):
        kill = kill_after(folder, f"run{number}", draw.uniform(0, seconds))
        finish(folder, f"run{number}")
        same = digests(folder / f"run{number}") == wanted and not problems(folder / f"run{number}")
        found.append({**asdict(kill), "same": same})
        click.echo(
            f"{number}: after {kill.seconds:.1f} s, in {kill.stage or 'no stage'}: {'same' if same else 'OTHER'}"
        )
    lost = [kill["lost_s"] for kill in found if kill["lost_s"] is not None]
    _keep(
        "kills",
        count=count,
        seed=seed,
        same=sum(kill["same"] for kill in found),
        stages=Counter(kill["stage"] for kill in found),
        whole_s=seconds,
        interval_s=60 * INTERVAL_MINUTES,
        most_lost_s=max(lost, default=0.0),
        kills=found,
    )


@soak.command()
@click.option("--count", default=200, show_default=True)
@click.option("--seed", default=0, show_default=True)
def flips(count: int, seed: int) -> None:
    """Flip one bit of a committed file, and see whether `verify`, and a run that would use it, notice."""
    draw, folder, missed = random.Random(seed), furnish(Path(tempfile.mkdtemp())), []
    finish(folder, "out")
    names = draw.choices(committed(folder / "out"), k=count)
    with working_in(folder):
        for name in names:
            path = Path("out") / name
            before = path.read_bytes()
            flip_bit(path, draw)
            missed += [f"{command}: {name}" for command in _commands(name) if not _notices(command, name)]
            path.write_bytes(before)
    _keep("flips", count=count, seed=seed, files=len(set(names)), missed=missed)


def _commands(name: str) -> list[list[str]]:
    """Those that read the file next."""
    run = ["run", "--config", "config.yaml", "--output", "out", "--quiet"]
    return [["verify", "out"], *([run] if name.startswith("stages/") else [])]


def _notices(command: list[str], name: str) -> bool:
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
        code = atopipe(command)
    return code in (2, 5) and (name in said.getvalue() or name == "config.yaml")


@soak.command()
def fuzz() -> None:
    """Configurations, command lines, structures, checkpoints and images that nobody meant."""
    tests = [str(Path(__file__).parent / "test_fuzz.py"), "--hypothesis-profile", "soak", "-q", "--timeout", "3600"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *tests, "-p", "no:cacheprovider", "--hypothesis-show-statistics"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        click.echo(done.stdout + done.stderr)
    runs = [line.strip() for line in done.stdout.splitlines() if "passing, " in line]
    click.echo("\n".join(runs))
    _keep("fuzz", exit_code=done.returncode, runs=runs, last=(done.stdout.strip().splitlines() or [""])[-1])


@soak.command()
@click.option("--count", default=200, show_default=True)
@click.option("--seed", default=0, show_default=True)
def pictures(count: int, seed: int) -> None:
    """Give damaged pictures to the bundle's infer.py: each gets an answer or one sentence, within a minute."""
    draw, folder = random.Random(seed), furnish(Path(tempfile.mkdtemp()))
    finish(folder, "out")
    codes, wrong = Counter[int](), []
    for number in range(count):
        kind = FORMATS[number % len(FORMATS)]
        content = io.BytesIO()
        Image.radial_gradient("L").resize((40, 30)).convert("RGB").save(content, kind)
        picture = folder / f"picture.{kind.lower()}"
        picture.write_bytes(mutated(content.getvalue(), draw))
        command = [sys.executable, str(folder / "out/bundle/infer.py"), "--image", str(picture), "--json"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        codes[done.returncode] += 1
        said = done.stderr.strip().splitlines()
        if (done.returncode == 0) != (said == []) or len(said) > 1 or "Traceback" in done.stderr:
            wrong.append(f"{kind} {number}: exit {done.returncode}, {done.stderr[-300:]}")
    _keep("pictures", count=count, seed=seed, codes=codes, wrong=wrong)


@soak.command()
@click.option("--minutes", default=0.1, show_default=True, help="Between two checkpoints.")
@click.option("--epochs", default=60, show_default=True)
def cost(minutes: float, epochs: int) -> None:
    """What checkpoints, kept as often as they may be, take of the time of training of ResNet-18."""
    folder = Path(tempfile.mkdtemp())
    options = ["--model", "resnet18", "--target-flops", "0.3", "--threads", "1", "--device", "cpu"]
    with working_in(folder):
        code = atopipe(
            ["train", *options, "--epochs", str(epochs), "--checkpoint-minutes", str(minutes), "--output", "out"]
        )
    events = [json.loads(line) for line in (folder / "out/events.jsonl").read_text().splitlines()]
    saved = [event["seconds"] for event in events if event["event"] == "checkpoint"]
    trained = sum(event["seconds"] for event in events if event["event"] == "epoch")
    _keep(
        "cost",
        exit_code=code,
        checkpoints=len(saved),
        saved_s=sum(saved),
        trained_s=trained,
        minutes=minutes,
        epochs=epochs,
    )


def _keep(kind: str, **found: Any) -> None:
    """Appends the result, and prints it without its long parts."""
    environment = {**hardware(), **library_versions(LIBRARIES)}
    with RESULTS.open("a", encoding="utf-8") as file:
        file.write(json.dumps({"kind": kind, "command": sys.argv[1:], **found, "environment": environment}) + "\n")
    click.echo(json.dumps({name: value for name, value in found.items() if name != "kills"}, indent=1))


if __name__ == "__main__":
    soak()
