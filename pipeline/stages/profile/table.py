"""latency.json: what a device measured of a pack, read with care, and the cost that it gives."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from atopipe.pipeline.engine.process_group import broadcast_bytes
from atopipe.pipeline.engine.stage import Context
from atopipe.pipeline.stages.profile.pack import FORMAT
from atopipe.pipeline.system.errors import MissingError, UsageError

if TYPE_CHECKING:
    from torch import nn

    from atopipe.ato.groups import Groups
    from atopipe.ato.search.cost import BilinearCost
    from atopipe.ato.search.latency import HeldOutError

TABLE = "latency.json"
LARGEST_TABLE = 16 * 2**20  # bytes
FIELDS = ("pack", "runtime", "processor", "provider", "threads", "batch", "input", "networks")


def read_table(file: str) -> dict[str, Any]:
    """The table in a file that a probe wrote; one sentence where there is none, or it is damaged."""
    path = Path(file)
    if not path.is_file():
        raise MissingError(
            f"--latency-table '{file}' is not there: run 'python probe.py PACK' on the device, and copy it"
        )
    try:
        content = path.read_bytes()
        table = json.loads(content) if len(content) <= LARGEST_TABLE else None
        if not isinstance(table, dict) or table.get("format") != FORMAT or any(name not in table for name in FIELDS):
            raise ValueError("it has other fields")
        for network in table["networks"]:
            float(network["ms"]), float(network["rest"]), dict(network["layers"]), str(network["file"])
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise UsageError(
            f"--latency-table '{file}' is no latency.json of a probe, or damaged: copy it again"
        ) from error
    return table


def check_table(table: Mapping[str, Any], pack: Mapping[str, Any], name: str) -> None:
    """UsageError unless the table is of this pack: the same network, input, classes and versions."""
    if table["pack"] != pack["digest"] or len(table["networks"]) != len(pack["networks"]):
        raise UsageError(
            f"--latency-table '{name}' is of another network, input or version: make the pack again with "
            "'atopipe profile', and time it on the device"
        )


def held_out_error(context: Context, model: "nn.Module", groups: "Groups") -> "HeldOutError":
    """How far the cost is from networks that the fit has not seen."""
    return latency_cost(context, model, groups)[1]


def latency_cost(context: Context, model: "nn.Module", groups: "Groups") -> "tuple[BilinearCost, HeldOutError]":
    """The cost in milliseconds, from the table of stage profile, and its error on networks it has not seen."""
    pack, table = (_of_profile(context, name) for name in ("pack/pack.json", TABLE))
    return fitted_cost(pack, table, model, groups)


def _of_profile(context: Context, name: str) -> Any:
    """What a file of stage profile holds, in every process of a job: the first one alone has it."""
    job = context.workspace.job
    content = context.input("profile", name).read_bytes() if job.rank == 0 else b""
    return json.loads(broadcast_bytes(content) if job.size > 1 else content)


def fitted_cost(
    pack: Mapping[str, Any], table: Mapping[str, Any], model: "nn.Module", groups: "Groups"
) -> "tuple[BilinearCost, HeldOutError]":
    """The cost that the table of this pack gives; UsageError where it does not fit the network."""
    from atopipe.ato.search.latency import LatencyTableError, TimedNetwork, fit_latency

    timed = [
        TimedNetwork(tuple(entry["widths"]), found["ms"], found["layers"], found["rest"])
        for entry, found in zip(pack["networks"], table["networks"], strict=True)
    ]
    try:
        return fit_latency(model, groups, timed)
    except LatencyTableError as error:
        raise UsageError(f"the latency table does not fit the network: {error}") from error
