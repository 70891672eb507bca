"""latency.json: what a device measured of a pack, read with care, and the cost that it gives."""

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from atopipe.pipeline.config.schema import DeploymentSettings
from atopipe.pipeline.engine.deployment import session_arguments
from atopipe.pipeline.engine.process_group import broadcast_bytes
from atopipe.pipeline.engine.stage import Context
from atopipe.pipeline.stages.profile.pack import CLIFF, FIT, TRY
from atopipe.pipeline.system.errors import Inconclusive, MissingError, UsageError
from atopipe.pipeline.system.files import DamagedError, read_sealed

if TYPE_CHECKING:
    from torch import nn

    from atopipe.ato.groups import Groups
    from atopipe.ato.search.latency import FittedLatency, TimedNetwork

TABLE = "latency.json"
TOO_NOISY = 0.2  # the median over networks of how far apart the rounds' times of one network are

Milliseconds = Annotated[float, Field(ge=0, le=1e9, allow_inf_nan=False)]
Whole = Annotated[int, Field(ge=1, le=2**31)]


class Part(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")


class TimedFile(Part):
    """One network of a pack as it was timed.

    `ms`: of the whole; `spread`: how far apart its rounds are, as a fraction; `layers`: milliseconds of each;
    `operations`: how many each consists of.
    """

    file: str
    ms: Annotated[float, Field(gt=0, le=1e9, allow_inf_nan=False)]
    spread: Milliseconds
    layers: Annotated[dict[str, Milliseconds], Field(min_length=1)]
    operations: Annotated[dict[str, Whole], Field(min_length=1)]


class LatencyTable(Part):
    """What `probe.py` writes: of which pack, where, and the times of its networks in order."""

    format: Annotated[int, Field(ge=2, le=2)]  # Literal[2] would take 2.0 as well
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
    try:
        return LatencyTable.model_validate(read_sealed(Path(file), LatencyTable))
    except FileNotFoundError:
        raise MissingError(
            f"--latency-table '{file}' is not there: run 'python probe.py PACK' on the device, and copy it"
        ) from None
    except (DamagedError, OSError, ValueError) as error:
        raise UsageError(
            f"--latency-table '{file}' is no latency.json of a probe, or was edited or cut off: copy it again"
        ) from error


def require_steady(table: LatencyTable) -> None:
    """Inconclusive where the device was too busy: half of its networks took times that are far apart."""
    spread = statistics.median(network.spread for network in table.networks)
    if spread > TOO_NOISY:
        raise Inconclusive(
            f"latency cannot be profiled: the same network's times differ by {100 * spread:.0f} % from round to round, "
            f"more than {100 * TOO_NOISY:.0f} %: end what else runs on '{table.processor}', and profile again"
        )


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


def fitted_latency(context: Context, model: "nn.Module", groups: "Groups") -> "FittedLatency":
    """The cost in milliseconds, from the table of stage profile, its error and the widths that are efficient."""
    pack = json.loads(_of_profile(context, "pack/pack.json"))
    table = LatencyTable.model_validate_json(_of_profile(context, TABLE))
    return fitted(pack, table, model, groups)


def _of_profile(context: Context, name: str) -> bytes:
    """What a file of stage profile holds, in every process of a job: the first one alone has it."""
    job = context.workspace.job
    content = context.input("profile", name).read_bytes() if job.rank == 0 else b""
    return broadcast_bytes(content) if job.size > 1 else content


def fitted(pack: Mapping[str, Any], table: LatencyTable, model: "nn.Module", groups: "Groups") -> "FittedLatency":
    """What the table of this pack says of the network; UsageError where it does not fit the network."""
    from atopipe.ato.search.latency import LatencyTableError, fit_latency

    try:
        return fit_latency(model, groups, timed(pack, table, but=(TRY, CLIFF)), timed(pack, table, but=(FIT, CLIFF)))
    except LatencyTableError as error:
        raise UsageError(f"the latency table does not fit the network: {error}") from error


def timed(pack: Mapping[str, Any], table: LatencyTable, *, but: Sequence[str]) -> "list[TimedNetwork]":
    """The networks of the pack with their times, those for something in `but` left out."""
    from atopipe.ato.search.latency import TimedNetwork

    return [
        TimedNetwork(tuple(entry["widths"]), found.ms, found.layers, found.operations)
        for entry, found in zip(pack["networks"], table.networks, strict=True)
        if entry["for"] not in but
    ]
