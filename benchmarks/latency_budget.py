"""Is a budget in latency kept? Whole runs with `--target-latency`, a few epochs on few pictures: this is about time.

    python benchmarks/latency_budget.py                                  # 9 cases, one thread, one picture
    python benchmarks/latency_budget.py --threads 2                      # the same with two threads
    python benchmarks/latency_budget.py --batch 8
    python benchmarks/latency_budget.py --table latency.json --case mobilenet_v2:0.5

Every case is a run in `--work`, which is resumed where it was interrupted, and a line of results/latency_budget.jsonl;
cases that are there are left out. What stage profile measured of a network is shared by its targets.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import numpy as np
from record import append, environment, rows

CASES = [f"{model}:{target}" for model in ("resnet50", "mobilenet_v2", "resnet18") for target in (0.7, 0.5, 0.3)]
TRAIN, VAL, SIZE, CLASSES = 16, 32, 224, 4
NAME = "latency_budget"


def pictures(seed: int) -> tuple[Any, ...]:
    """Pictures of noise on one of four colours: they are learnt within a few steps."""
    generator = np.random.default_rng(seed)
    labels = np.arange(TRAIN + VAL) % CLASSES
    colours = generator.integers(60, 190, (CLASSES, 3, 1, 1))
    images = (colours[labels] + generator.integers(-50, 50, (TRAIN + VAL, 3, SIZE, SIZE))).astype(np.uint8)
    names = [f"colour {number}" for number in range(CLASSES)]
    return images[:TRAIN], labels[:TRAIN], images[TRAIN:], labels[TRAIN:], names


def command(case: dict[str, Any], output: Path, table: str | None, reuse: Path | None) -> list[str]:
    """`atopipe run` for the case."""
    options = {
        "model": case["model"],
        "target-latency": case["target"],
        "data": f"{Path(__file__).resolve()}:pictures",
        "input-size": SIZE,
        "epochs": 2,
        "batch-size": 4,
        "deploy-threads": case["threads"],
        "deploy-batch": case["batch"],
        "output": output,
        **({"latency-table": table} if table else {}),
        **({"reuse": reuse} if reuse else {}),
    }
    given = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    return [sys.executable, "-m", "atopipe.pipeline", "run", "--no-preflight", *given]


def findings(folder: Path) -> dict[str, Any]:
    """What the run promised, expected and measured."""
    results = [json.loads(path.read_text(encoding="utf-8")) for path in folder.glob("stages/*/result.json")]
    metrics = {name: value for result in results for name, value in result["metrics"].items()}
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text(encoding="utf-8").splitlines()]
    settled = [event for event in events if event["event"] == "latency settled"]
    gates = json.loads((folder / "stages/validate/gates.json").read_text(encoding="utf-8"))
    return {
        "gate": next(gate for gate in gates if gate["name"].startswith("latency.")),
        "rounds": settled[-1]["rounds"] if settled else [],
        "settled_s": settled[-1].get("seconds") if settled else None,
        "metrics": {name: metrics[name] for name in sorted(metrics) if name.split(".")[0] in ("latency", "flops")},
        "seconds": {result["stage"]: result["seconds"] for result in results},
    }


@click.command()
@click.option("--case", "cases", multiple=True, default=CASES, metavar="MODEL:TARGET")
@click.option("--threads", default=1, show_default=True)
@click.option("--batch", default=1, show_default=True)
@click.option("--table", default=None, help="latency.json of another device.")
@click.option("--work", type=click.Path(path_type=Path), default=Path("runs/latency_budget"), show_default=True)
def main(cases: tuple[str, ...], threads: int, batch: int, table: str | None, work: Path) -> None:
    """Whole runs with a budget in latency."""
    done = {(r["model"], r["target"], r["threads"], r["batch"], r["table"]) for r in rows(NAME)}
    for written in cases:
        model, _, target = written.partition(":")
        case = {"model": model, "target": float(target), "threads": threads, "batch": batch, "table": bool(table)}
        if tuple(case.values()) in done:
            continue
        name = f"{model}-{threads}-{batch}{'-table' if table else ''}"
        output = work / f"{name}-{target}"
        others = sorted(
            path for path in work.glob(f"{name}-*") if path != output and (path / "stages/profile").exists()
        )
        ended = subprocess.run(command(case, output, table, next(iter(others), None)), check=False)
        if ended.returncode not in (0, 3, 4):
            raise SystemExit(ended.returncode)
        found = findings(output)
        append(NAME, {**case, "exit": ended.returncode, **found, "environment": environment()})
        gate = found["gate"]
        click.echo(f"{written}: exit {ended.returncode}, {gate['value']} [{gate.get('low')}, {gate.get('high')}]")


if __name__ == "__main__":
    main()
