"""Time networks of random widths where the model will run, so that training can be given a budget in latency.

Only where there is such a budget. Leaves pack/ (weightless networks, see `pack`) and latency.json, what they took: on
this machine, or on the device whose table the run was given.
"""

from typing import TYPE_CHECKING

from atopipe.pipeline.config.schema import Config
from atopipe.pipeline.engine.deployment import session_arguments
from atopipe.pipeline.engine.stage import Context, Stage
from atopipe.pipeline.stages.profile.pack import make_pack
from atopipe.pipeline.stages.profile.table import TABLE, LatencyTable, check_table, read_table, require_steady
from atopipe.pipeline.system.files import write_json

if TYPE_CHECKING:
    from pathlib import Path


def run(context: Context) -> dict[str, float]:
    config, folder = context.config, context.folder / "pack"
    folder.mkdir()
    pack = make_pack(context.workspace, folder)
    table = read_table(config.latency_table) if config.latency_table is not None else timed_here(config, folder)
    check_table(table, pack, config.deployment, config.latency_table or "made here")
    require_steady(table)
    write_json(context.folder / TABLE, table.model_dump())
    dense = table.networks[0].ms
    where = f"{table.processor}, {table.threads} threads, batch {table.batch}, ONNX Runtime {table.runtime}"
    context.display.say(f"profile {len(table.networks)} networks timed; dense {dense:.3g} ms ({where})")
    return {"latency.profiled_dense_ms": dense}


def timed_here(config: Config, folder: "Path") -> LatencyTable:
    """The table of the pack in `folder` on this machine; MissingError where the deployment is not to be had."""
    from atopipe.pipeline.stages.profile.probe import Failed, probe
    from atopipe.pipeline.system.errors import MissingError

    try:
        found = probe(folder, **session_arguments(config.deployment))
    except Failed as error:
        raise MissingError(f"latency cannot be measured here: {error}") from error
    return LatencyTable.model_validate(found)


def has_latency_target(config: Config) -> bool:
    """Whether the run has a budget in latency."""
    return config.target_latency is not None


STAGE = Stage(
    name="profile",
    run=run,
    settings=("model", "data", "latency_table", "deployment", "recipe"),
    libraries=("torch", "torchvision", "torch-pruning", "onnx", "onnxruntime"),
    wanted=has_latency_target,
)
