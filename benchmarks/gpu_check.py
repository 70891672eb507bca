"""The first half hour on a GPU: five checks, each within its minutes; what is done is kept, so run it again to go on.

    python benchmarks/gpu_check.py [--device cuda] [--tiny] [--only NAME]

Writes results/gpu.json and prints a table with what to look at. `--device cpu --tiny` runs to its end in minutes.
"""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import click
import torch
from record import environment

from atopipe.ato.execution import PRECISIONS, Execution
from atopipe.ato.training.dense import DenseTrainer
from atopipe.pipeline.config.load import load_config
from atopipe.pipeline.models.build import build_model
from atopipe.pipeline.models.inference import whole_float32

RESULT = Path(__file__).parent / "results" / "gpu.json"
Figures = dict[str, float | str | int]


@dataclass(frozen=True)
class Machine:
    """Where it runs; `tiny`: only that everything works."""

    device: str
    tiny: bool


def command(machine: Machine, *arguments: str) -> None:
    """An atopipe command, which must succeed; a failed gate of a short run is no failure."""
    done = subprocess.run(
        [sys.executable, "-m", "atopipe.pipeline", *arguments], capture_output=True, text=True, check=False
    )
    if done.returncode not in (0, 3, 4):
        raise click.ClickException(f"atopipe {arguments[0]} ended with {done.returncode}: {done.stderr[-500:]}")


def digits(machine: Machine) -> Figures:
    """A whole run on digits, eager and compiled where there is a GPU: every gate."""
    figures: Figures = {}
    network, epochs = ("resnet20", "1") if machine.tiny else ("resnet18", "4")
    for name, flag in (("eager", "--no-compile"), *([] if machine.tiny else [("compiled", "--compile")])):
        with tempfile.TemporaryDirectory() as folder:
            start, output = time.perf_counter(), str(Path(folder) / "run")
            command(
                machine, "run", "--model", network, "--data", "digits", "--target-flops", "0.5", "--epochs", epochs,
                "--device", machine.device, flag, "--output", output, "--quiet",
            )  # fmt: skip
            gates = json.loads((Path(output) / "stages/validate/gates.json").read_text())
            figures[f"{name}_s"] = time.perf_counter() - start
            figures[f"{name}_failed_gates"] = ", ".join(g["name"] for g in gates if g["outcome"] == "fail") or "none"
    return figures


def steps(machine: Machine) -> Figures:
    """Images per second and waits of a training step of ResNet-50 at 224 pixels."""
    side, network, batches = (32, "resnet20", (4,)) if machine.tiny else (224, "resnet50", (64, 256, 512))
    device, figures = torch.device(machine.device), Figures()
    recipe = load_config(None, {"model.name": "x", "target_flops": 1, "recipe": "imagenet"}).recipe
    for size in batches:
        execution = Execution(PRECISIONS["auto"](device), torch.channels_last)
        model = build_model(network, 10).to(device)
        trainer = DenseTrainer(model, recipe, 10**6, torch.Generator().manual_seed(0), execution)
        images, labels = (
            torch.rand(size, 3, side, side, device=device),
            torch.zeros(size, dtype=torch.long, device=device),
        )
        for _ in range(3):
            trainer.step(images, labels)
        if device.type == "cuda":
            torch.cuda.set_sync_debug_mode("warn")
        start, count = time.perf_counter(), 3 if machine.tiny else 20
        for _ in range(count):
            trainer.step(images, labels)
        if device.type == "cuda":
            torch.cuda.set_sync_debug_mode("default")
            torch.cuda.synchronize()
            figures[f"peak_gb_{size}"] = torch.cuda.max_memory_allocated() / 1e9
        figures[f"images_per_s_{size}"] = count * size / (time.perf_counter() - start)
    return figures


def loader(machine: Machine) -> Figures:
    """Images per second of the loader, and what part of a step waits for it."""
    if machine.tiny:
        return {"skipped": "benchmarks/loader.py takes minutes without a GPU"}
    done = subprocess.run(
        [sys.executable, "benchmarks/loader.py", "--batch-size", "256"], capture_output=True, text=True, check=True
    )
    return {"said": done.stdout.strip()}


def rounding(machine: Machine) -> Figures:
    """How many answers TF32 and IEEE float32 change against float64: decides the limit of the accuracy gate."""
    side, network, count = (32, "resnet20", 64) if machine.tiny else (224, "resnet50", 10_000)
    device = torch.device(machine.device)
    torch.manual_seed(0)
    model = build_model(network, 1000).to(device).eval()
    exact, changed = build_model(network, 1000).to(device).double().eval(), {"tf32": 0, "ieee": 0}
    exact.load_state_dict(model.state_dict())
    with torch.inference_mode():
        for _ in range(0, count, 64):
            images = torch.rand(64, 3, side, side, device=device)
            true = exact(images.double()).argmax(1)
            changed["tf32"] += int((model(images).argmax(1) != true).sum())
            with whole_float32():
                changed["ieee"] += int((model(images).argmax(1) != true).sum())
    return {"images": count, **changed}


def cifar(machine: Machine) -> Figures:
    """Training of small networks on images of 32 pixels, where launches and not the GPU are the limit."""
    names = ("resnet20",) if machine.tiny else ("resnet56", "cifar_resnet18")
    return {name: seconds_per_epoch(machine, name) for name in names}


def seconds_per_epoch(machine: Machine, name: str) -> float:
    """Of digits, by the history of a short training."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "run"
        command(
            machine, "train", "--model", name, "--data", "digits", "--target-flops", "0.5", "--epochs", "2",
            "--device", machine.device, "--output", str(output), "--quiet",
        )  # fmt: skip
        history = json.loads((output / "stages/train/history.json").read_text())
    return float(history[-1]["seconds"])


CHECKS: Mapping[str, tuple[Callable[[Machine], Figures], str]] = {
    "digits": (digits, "no failed gate but accuracy.above_majority"),
    "steps": (steps, "warnings of waits above; images per second must rise with the batch"),
    "loader": (loader, "images per second must exceed what the step takes"),
    "rounding": (rounding, "ieee near 0; tf32 says what the gate would see without it"),
    "cifar": (cifar, "seconds of the last epoch"),
}


@click.command()
@click.option("--device", default="cuda", type=click.Choice(["cuda", "cpu"]))
@click.option("--tiny", is_flag=True, help="Only that everything works.")
@click.option("--only", type=click.Choice([*CHECKS]))
def main(device: str, tiny: bool, only: str | None) -> None:
    """Run what has not been done yet on this device."""
    result = RESULT.with_name("gpu_tiny.json") if tiny else RESULT
    known = json.loads(result.read_text()) if result.exists() else {}
    for name, (check, look_at) in CHECKS.items():
        key = f"{device}.{name}"
        if (only and name != only) or key in known:
            continue
        start = time.perf_counter()
        figures = check(Machine(device, tiny))
        known[key] = {**figures, "seconds": time.perf_counter() - start, **environment()}
        result.write_text(json.dumps(known, indent=1) + "\n")
        print(f"{name:<9} {figures}\n{'':<9} look at: {look_at}", flush=True)


if __name__ == "__main__":
    main()
