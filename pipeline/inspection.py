"""What of a network can be pruned: its group sets, what stays whole and why, and how small it can become."""

from dataclasses import asdict, dataclass
from typing import Any

from atopipe.ato.recipe import Align
from atopipe.pipeline.config import Config
from atopipe.pipeline.display import QuietDisplay
from atopipe.pipeline.summary import both_readings, scaled
from atopipe.pipeline.workspace import Workspace


@dataclass(frozen=True)
class Set:
    """A width that can be pruned: `size` groups, removed together from `layers`."""

    name: str
    size: int
    layers: int


@dataclass(frozen=True)
class Whole:
    """A width that stays as it is, and why."""

    name: str
    size: int
    reason: str


@dataclass(frozen=True)
class Inspection:
    """`minimum_flops`: the smallest reachable fraction of the dense network's FLOPs."""

    model: str
    input: tuple[int, ...]
    sets: tuple[Set, ...]
    unprunable: tuple[Whole, ...]
    flops: float
    params: float
    align: Align
    minimum_flops: float

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def as_text(self) -> str:
        """A table of the sets, and the totals."""
        table = [("group set", "groups", "layers"), *((s.name, str(s.size), str(s.layers)) for s in self.sets)]
        widths = [max(len(line[column]) for line in table) for column in range(3)]
        lines = [f"{n.ljust(widths[0])}  {g.rjust(widths[1])}  {m.rjust(widths[2])}" for n, g, m in table]
        lines += [f"{w.name} ({w.size} channels) stays whole: {w.reason}" for w in self.unprunable]
        shape = "x".join(map(str, self.input))
        totals = f"{scaled(self.flops)} FLOPs (2 x multiply-accumulates), {scaled(self.params)} parameters"
        low = f"{self.minimum_flops:.4f} of the dense FLOPs with widths aligned to {self.align}"
        example = both_readings({"flops": 0.3})
        return "\n".join(
            [*lines, "", f"{self.model}, input {shape}: {totals}", f"reachable: {low}", f"target {example}"]
        )


def inspect_model(config: Config) -> Inspection:
    """Builds and traces the network; raises what building and tracing raise."""
    from atopipe.ato.probe import find_groups
    from atopipe.ato.resources import flops, params
    from atopipe.ato.selection import reachable_minimum

    workspace = Workspace(config, QuietDisplay())
    workspace.check_model()
    model, example = workspace.new_model(), workspace.example
    groups = find_groups(model, example, workspace.generator())
    cost = flops(model, groups, example)
    align = config.recipe.align
    return Inspection(
        model=config.model.name,
        input=tuple(example.shape[1:]),
        sets=tuple(Set(s.name, s.size, len({member.module for member in s.members})) for s in groups.sets),
        unprunable=tuple(Whole(u.name, u.size, u.reason) for u in groups.unprunable),
        flops=cost.dense,
        params=params(model, groups, example).dense,
        align=align,
        minimum_flops=reachable_minimum(groups, cost, align),
    )
