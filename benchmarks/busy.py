"""What is `atopipe bench` worth on a machine that others use? The same pair, many times, beside busy loops.

    python benchmarks/busy.py runs/resnet18-digits-0.3-seed0

Of a finished run, dense.onnx and model.onnx are compared --times times, and dense.onnx with itself, while --loops
processes do nothing but keep a processor busy. Appends a line to results/busy.jsonl.
"""

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
from record import append, environment

LOOP = "while True: pass"


@contextmanager
def busy(loops: int) -> Iterator[None]:
    """While active, so many processes keep a processor busy each."""
    processes = [subprocess.Popen([sys.executable, "-c", LOOP]) for _ in range(loops)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def measure(first: Path, second: Path, min_speedup: float, seconds: float) -> dict[str, Any]:
    """One `atopipe bench`: verdict, ratio and how many of its runs were undisturbed."""
    command = [sys.executable, "-m", "atopipe.pipeline", "bench", str(first), str(second), "--json"]
    limits = ["--min-speedup", str(min_speedup), "--seconds", str(seconds)]
    done = subprocess.run([*command, *limits], capture_output=True, text=True, check=False)
    found = json.loads(done.stdout)
    latency = found["latency"][0]
    ratio = latency["ratio"]
    return {"verdict": found["verdict"], "ratio": ratio and ratio["estimate"], "kept": latency["kept"]}


def spread(found: list[dict[str, Any]]) -> float | None:
    """Largest distance of a ratio from the middle one, as a fraction; of those that were not inconclusive."""
    ratios = sorted(each["ratio"] for each in found if each["verdict"] != "inconclusive")
    return max(abs(ratio / ratios[len(ratios) // 2] - 1) for ratio in ratios) if ratios else None


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--times", default=10, show_default=True)
@click.option("--loops", default=2, show_default=True, help="Busy processes beside the measurement.")
@click.option("--seconds", default=10.0, show_default=True, help="Of each comparison.")
def main(run: Path, times: int, loops: int, seconds: float) -> None:
    """Compare a pair, and a model with itself, many times on a busy machine."""
    dense, small = run / "stages/export/dense.onnx", run / "stages/export/model.onnx"
    with busy(loops):
        pair = [measure(dense, small, 1.0, seconds) for _ in range(times)]
        same = [measure(dense, dense, 1.05, seconds) for _ in range(times)]
    row = {"run": run.name, "loops": loops, "seconds": seconds, "pair": pair, "same": same, "spread": spread(pair)}
    append("busy", {**row, "environment": environment()})
    click.echo(f"pair: {Counter(each['verdict'] for each in pair)}, ratios {[each['ratio'] for each in pair]}")
    click.echo(f"spread {spread(pair)}; A/A at 1.05: {Counter(each['verdict'] for each in same)}")


if __name__ == "__main__":
    main()
