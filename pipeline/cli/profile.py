"""`atopipe profile`: a pack for a device to time, or what this machine makes of the network's widths."""

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from atopipe.pipeline.config.schema import Config
from atopipe.pipeline.engine.workspace import Workspace
from atopipe.pipeline.report.tables import aligned
from atopipe.pipeline.report.terminal import QuietDisplay
from atopipe.pipeline.stages.profile.cliffs import Cliff, cliffs
from atopipe.pipeline.stages.profile.pack import make_pack
from atopipe.pipeline.stages.profile.stage import timed_here
from atopipe.pipeline.stages.profile.table import LatencyTable, check_table, fitted, read_table, require_steady
from atopipe.pipeline.system.errors import UsageError

if TYPE_CHECKING:
    from torch import nn

    from atopipe.ato.groups import Groups
    from atopipe.ato.search.latency import HeldOutError

SHOWN = 10  # layers, and cliffs


@dataclass(frozen=True)
class LayerTime:
    """What one layer of the dense network takes: milliseconds, and shares of all layers' time and FLOPs."""

    name: str
    ms: float
    time_share: float
    flops_share: float


@dataclass(frozen=True)
class Profile:
    """`minimum`: the smallest reachable latency, a fraction of `dense_ms`; `error`: of the fit, on unseen networks.

    `block`: channels that the device works on at once; `whole`: widths that are no faster when they are narrower.
    """

    where: str
    dense_ms: float
    minimum: float
    error: "HeldOutError"
    block: int
    whole: tuple[str, ...]
    layers: tuple[LayerTime, ...]
    cliffs: tuple[Cliff, ...]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def as_text(self) -> str:
        """The layers that take most time beside what they cost in FLOPs, the cliffs, and what is reachable."""
        rows = [("layer", "ms", "of the time", "of the FLOPs")]
        rows += [(n.name, f"{n.ms:.3f}", f"{n.time_share:.1%}", f"{n.flops_share:.1%}") for n in self.layers]
        error = f"{100 * self.error.mean:.1f} % on average, {100 * self.error.largest:.1f} % at most"
        return "\n".join(
            [
                aligned(rows),
                "",
                *(f"cliff: {cliff.as_text()}" for cliff in self.cliffs[:SHOWN]),
                *([f"no faster when narrower, and left whole: {', '.join(self.whole)}"] if self.whole else []),
                f"efficient in blocks of {self.block} channels",
                f"reachable: {self.minimum:.3f} to 1 of the dense {self.dense_ms:.3g} ms ({self.where})",
                f"fit: off by {error} on {self.error.networks} unseen networks",
            ]
        )


def write_device_pack(config: Config, folder: Path) -> None:
    """Fills a new folder with what a device has to time; UsageError where there is something in it already."""
    if os.path.lexists(folder) and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"--pack '{folder}' is not an empty folder: choose another")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--pack '{folder}' cannot be made ({error.strerror}): choose another folder") from error
    make_pack(Workspace(config, QuietDisplay()), folder)


def profile_network(config: Config) -> Profile:
    """What this machine, or the device of the configuration's table, makes of the network's widths.

    Raises BudgetError where the configuration has a target in latency that cannot be reached.
    """
    workspace = Workspace(config, QuietDisplay())
    with TemporaryDirectory() as scratch, workspace.limited_threads():
        pack = make_pack(workspace, Path(scratch))
        table = (
            read_table(config.latency_table) if config.latency_table is not None else timed_here(config, Path(scratch))
        )
    check_table(table, pack, config.deployment, config.latency_table or "made here")
    require_steady(table)
    model = workspace.new_model()
    return _profile(config, pack, table, model, workspace.groups(model), _layer_flops(workspace))


def _profile(
    config: Config,
    pack: Mapping[str, Any],
    table: LatencyTable,
    model: "nn.Module",
    groups: "Groups",
    flops: Mapping[str, float],
) -> Profile:
    from atopipe.ato.search.budget import Budget
    from atopipe.ato.search.selection import check_budgets, reachable_minimum

    found = fitted(pack, table, model, groups)
    cost, align = found.cost, found.steps if config.recipe.align == "auto" else config.recipe.align
    if config.target_latency is not None:
        check_budgets(groups, [Budget(cost, config.target_latency.limit(cost.dense))], align)
    pairs = zip(groups.sets, found.steps, strict=True)
    return Profile(
        where=f"{table.processor}, threads {table.threads}, batch {table.batch}, ONNX Runtime {table.runtime}",
        dense_ms=table.networks[0].ms,
        minimum=reachable_minimum(groups, cost, align),
        error=found.error,
        block=cost.block,
        whole=tuple(f"{item.name} ({item.size})" for item, step in pairs if step == item.size),
        layers=_costliest(table.networks[0].layers, flops),
        cliffs=tuple(cliffs(pack, table, model, groups)),
    )


def _costliest(times: Mapping[str, float], flops: Mapping[str, float]) -> tuple[LayerTime, ...]:
    whole, counted = sum(times.values()), sum(flops.values())
    names = sorted(times, key=times.__getitem__, reverse=True)[:SHOWN]
    return tuple(LayerTime(n, times[n], times[n] / whole, flops.get(n, 0.0) / counted) for n in names)


def _layer_flops(workspace: Workspace) -> dict[str, float]:
    """FLOPs of each layer of the dense network, for one image."""
    from atopipe.ato.search.cost import flops_of_layers

    return flops_of_layers(workspace.new_model(), workspace.example)
