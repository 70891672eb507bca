"""What of a network can be pruned: its group sets, what cannot and why, and how small it can become."""

import sys
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from atopipe.ato.recipe import Align
from atopipe.pipeline.cli.profile import Profile, profile_network
from atopipe.pipeline.config.schema import Config
from atopipe.pipeline.config.targets import Target
from atopipe.pipeline.engine.workspace import Workspace
from atopipe.pipeline.report.summary import both_readings
from atopipe.pipeline.report.terminal import PlainDisplay
from atopipe.pipeline.system.text import scaled

if TYPE_CHECKING:
    from atopipe.ato.groups import Groups
    from atopipe.ato.search.cost import Cost
    from atopipe.pipeline.engine.preflight import Preflight


EXAMPLE = {"flops": Target.parse(0.3)}  # read both ways where no target is given


@dataclass(frozen=True)
class Set:
    """A width that can be pruned: `size` groups, removed together from `layers`.

    `flops`, `params`: the fraction of the network's that is spent on this width, if the others stay as they are.
    """

    name: str
    size: int
    layers: int
    flops: float
    params: float


@dataclass(frozen=True)
class UnprunableWidth:
    """A width of `size` channels that is not pruned, and why."""

    name: str
    size: int
    reason: str


@dataclass(frozen=True)
class Inspection:
    """`minimum_flops`, `minimum_params`: the smallest reachable fractions of the dense network's."""

    model: str
    input: tuple[int, ...]
    sets: tuple[Set, ...]
    unprunable: tuple[UnprunableWidth, ...]
    proven_in_training: bool
    flops: float
    params: float
    align: Align
    minimum_flops: float
    minimum_params: float
    target: str
    preflight: "Preflight | None"
    latency: Profile | None
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def notes(self) -> list[str]:
        """The totals, what is reachable, what the preflight check gave, and the time it took."""
        shape = "x".join(map(str, self.input))
        totals = f"{scaled(self.flops)} FLOPs (2 x multiply-accumulates), {scaled(self.params)} parameters"
        low = f"{self.minimum_flops:.4f} of the FLOPs, {self.minimum_params:.4f} of the parameters"
        lines = [f"{self.model}, input {shape}: {totals}", f"reachable: {low}, with widths aligned to {self.align}"]
        lines.append(f"target {self.target}")
        if not self.proven_in_training:
            lines.append("not proven while training: outputs are random then even without dropout layers")
        if self.preflight:
            lines.append(f"preflight ok (random weights): {self.preflight.as_text()}")
        return [*lines, f"after {self.seconds:.1f} s"]


class _Notes(PlainDisplay):
    """On standard error what was done with the network, and that the search for widths goes on."""

    def say(self, line: str) -> None:
        if line.startswith(("model ", "groups ")):
            super().say(line)


def inspect_model(config: Config) -> Inspection:
    """Builds and reads the network and tries the target, if there is one; raises what these raise."""
    workspace = Workspace(config, _Notes(sys.stderr))
    with workspace.limited_threads():
        return _inspect(config, workspace)


def _inspect(config: Config, workspace: Workspace) -> Inspection:
    from atopipe.ato.search.budget import Budget
    from atopipe.ato.search.cost import COSTS
    from atopipe.ato.search.selection import check_budgets, reachable_minimum

    workspace.check_model()
    model, example = workspace.first_model(), workspace.example
    started = time.perf_counter()
    groups = workspace.groups(model)
    costs = {name: cost(model, groups, example) for name, cost in COSTS.items()}
    counted = {name: target for name, target in config.targets.items() if name in costs}
    budgets = [Budget(costs[name], target.limit(costs[name].dense)) for name, target in counted.items()]
    align = config.recipe.align
    if budgets:
        check_budgets(groups, budgets, align)
    return Inspection(
        model=config.model.name,
        input=tuple(example.shape[1:]),
        sets=_sets(groups, costs),
        unprunable=tuple(UnprunableWidth(u.name, u.size, u.reason) for u in groups.unprunable),
        proven_in_training=groups.proven_in_training,
        flops=costs["flops"].dense,
        params=costs["params"].dense,
        align=align,
        minimum_flops=reachable_minimum(groups, costs["flops"], align),
        minimum_params=reachable_minimum(groups, costs["params"], align),
        target=both_readings(config.targets or EXAMPLE, {name: cost.dense for name, cost in costs.items()}),
        preflight=workspace.preflight(model, groups, budgets) if budgets else None,
        latency=profile_network(config) if config.target_latency is not None else None,
        seconds=time.perf_counter() - started,
    )


def _sets(groups: "Groups", costs: "dict[str, Cost]") -> tuple[Set, ...]:
    import torch

    from atopipe.ato.search.cost import kept_fraction

    sizes = torch.tensor(groups.sizes, dtype=torch.float64)
    sets = []
    for i, group_set in enumerate(groups.sets):
        without = sizes.clone()
        without[i] = 0
        shares = {name: 1 - kept_fraction(cost, without) for name, cost in costs.items()}
        sets.append(Set(group_set.name, group_set.size, len({m.module for m in group_set.members}), **shares))
    return tuple(sets)


def show(inspection: Inspection) -> None:
    """Prints the sets as a table, what cannot be pruned, and the totals."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("group set", no_wrap=True)
    for heading in ("groups", "layers", "FLOPs", "parameters"):
        table.add_column(heading, justify="right")
    for s in inspection.sets:
        table.add_row(Text(s.name), str(s.size), str(s.layers), f"{100 * s.flops:.1f} %", f"{100 * s.params:.1f} %")
    console.print(table)
    for width in inspection.unprunable:
        line = f"{width.name} ({width.size} channels) is not pruned: {width.reason}"
        console.print(line, style="dim", markup=False, soft_wrap=True)
    latency = [inspection.latency.as_text()] if inspection.latency else []
    for line in (*latency, "", *inspection.notes()):
        console.print(line, markup=False, soft_wrap=True)
