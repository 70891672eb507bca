"""latency.json: what a device measured of a pack, read with care, and the cost that it gives."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from atopipe.pipeline.config.schema import DeploymentSettings
from atopipe.pipeline.engine.deployment import session_arguments
from atopipe.pipeline.engine.process_group import broadcast_bytes
from atopipe.pipeline.engine.stage import Context
from atopipe.pipeline.system.errors import MissingError, UsageError

if TYPE_CHECKING:
    from torch import nn

    from atopipe.ato.groups import Groups
    from atopipe.ato.search.cost import BilinearCost
    from atopipe.ato.search.latency import HeldOutError

TABLE = "latency.json"
LARGEST_TABLE = 16 * 2**20  # bytes

Milliseconds = Annotated[float, Field(ge=0, le=1e9, allow_inf_nan=False)]
Whole = Annotated[int, Field(ge=1, le=2**31)]


class Part(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")


class TimedFile(Part):
    """One network of a pack as it was timed: milliseconds of the whole, of each layer, and of the rest."""

    file: str
    ms: Annotated[float, Field(gt=0, le=1e9, allow_inf_nan=False)]
    layers: Annotated[dict[str, Milliseconds], Field(min_length=1)]
    rest: Milliseconds


class LatencyTable(Part):
    """What `probe.py` writes: of which pack, where, and the times of its networks in order."""

    format: Annotated[int, Field(ge=1, le=1)]  # Literal[1] would take true as well
    pack: str
    runtime: str
    processor: str
    provider: str
    threads: Whole
    batch: Whole
    input: list[Whole]
    graph_level: str
    seconds: Milliseconds
    networks: Annotated[list[TimedFile], Field(min_length=1, max_length=10_000)]


def read_table(file: str) -> LatencyTable:
    """The table in a file that a probe wrote; one sentence where there is none, or it is damaged."""
    path = Path(file)
    try:
        if not path.is_file():
            raise MissingError(
                f"--latency-table '{file}' is not there: run 'python probe.py PACK' on the device, and copy it"
            )
        content = path.read_bytes() if path.stat().st_size <= LARGEST_TABLE else b""
        return LatencyTable.model_validate_json(content)
    except (OSError, ValueError) as error:
        raise UsageError(
            f"--latency-table '{file}' is no latency.json of a probe, or damaged: copy it again"
        ) from error


def check_table(table: LatencyTable, pack: Mapping[str, Any], deployment: DeploymentSettings, name: str) -> None:
    """UsageError unless the table is of this pack, its networks in order, and of the deployment that is asked for."""
    files = [network.file for network in table.networks]
    of_pack = (pack["digest"], pack["input"], [network["file"] for network in pack["networks"]])
    if (table.pack, table.input, files) != of_pack:
        raise UsageError(
            f"--latency-table '{name}' is of another network, input or version: make the pack again with "
            "'atopipe profile', and time it on the device"
        )
    made = {"provider": table.provider, "threads": table.threads, "batch": table.batch}
    if made != session_arguments(deployment):
        raise UsageError(
            f"--latency-table '{name}' was made with {table.provider}, {table.threads} threads and batch "
            f"{table.batch}: give the same with --deploy-provider, --deploy-threads and --deploy-batch, or "
            "time the pack again"
        )


def held_out_error(context: Context, model: "nn.Module", groups: "Groups") -> "HeldOutError":
    """How far the cost is from networks that the fit has not seen."""
    return latency_cost(context, model, groups)[1]


def latency_cost(context: Context, model: "nn.Module", groups: "Groups") -> "tuple[BilinearCost, HeldOutError]":
    """The cost in milliseconds, from the table of stage profile, and its error on networks it has not seen."""
    pack = json.loads(_of_profile(context, "pack/pack.json"))
    table = LatencyTable.model_validate_json(_of_profile(context, TABLE))
    return fitted_cost(pack, table, model, groups)


def _of_profile(context: Context, name: str) -> bytes:
    """What a file of stage profile holds, in every process of a job: the first one alone has it."""
    job = context.workspace.job
    content = context.input("profile", name).read_bytes() if job.rank == 0 else b""
    return broadcast_bytes(content) if job.size > 1 else content


def fitted_cost(
    pack: Mapping[str, Any], table: LatencyTable, model: "nn.Module", groups: "Groups"
) -> "tuple[BilinearCost, HeldOutError]":
    """The cost that the table of this pack gives; UsageError where it does not fit the network."""
    from atopipe.ato.search.latency import LatencyTableError, TimedNetwork, fit_latency

    timed = [
        TimedNetwork(tuple(entry["widths"]), found.ms, found.layers, found.rest)
        for entry, found in zip(pack["networks"], table.networks, strict=True)
    ]
    try:
        return fit_latency(model, groups, timed)
    except LatencyTableError as error:
        raise UsageError(f"the latency table does not fit the network: {error}") from error
