"""Channel counts that cost more than the next wider ones, as they were measured."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from atopipe.pipeline.stages.profile.pack import CLIFF
from atopipe.pipeline.stages.profile.table import LatencyTable

if TYPE_CHECKING:
    from torch import nn

    from atopipe.ato.groups import Groups

STEEP = 1.05  # times what the wider layer takes, from which on it is no noise


@dataclass(frozen=True)
class Cliff:
    """`layer` takes `ms` with `channels` (in, out), and less, `wider_ms`, with `wider_channels`."""

    layer: str
    channels: tuple[int, int]
    ms: float
    wider_channels: tuple[int, int]
    wider_ms: float

    def as_text(self) -> str:
        """One line."""
        here, there = (f"{ins} -> {outs} channels" for ins, outs in (self.channels, self.wider_channels))
        return f"{self.layer}: {here} take {self.ms:.3g} ms, {there} {self.wider_ms:.3g} ms"


def cliffs(pack: Mapping[str, Any], table: LatencyTable, model: "nn.Module", groups: "Groups") -> list[Cliff]:
    """Of each layer the steepest, those that cost most time first: dense against a few channels less everywhere."""
    from atopipe.ato.search.cost import ChannelCounts

    dense, names = table.networks[0].layers, sorted(table.networks[0].layers)
    counts = ChannelCounts.of(model, groups, [(name, axis) for name in names for axis in ("in", "out")])
    found: dict[str, Cliff] = {}
    for entry, timed in zip(pack["networks"], table.networks, strict=True):
        if entry["for"] != CLIFF:
            continue
        here, wider = (_pairs(counts, widths) for widths in (entry["widths"], pack["networks"][0]["widths"]))
        for name, own, other in zip(names, here, wider, strict=True):
            ms = timed.layers.get(name, 0.0)
            if own != other and ms > STEEP * dense[name] and (name not in found or ms > found[name].ms):
                found[name] = Cliff(name, own, ms, other, dense[name])
    return sorted(found.values(), key=lambda cliff: cliff.wider_ms - cliff.ms)


def _pairs(counts: Any, widths: list[int]) -> list[tuple[int, int]]:
    """Channels in and out of each layer at the widths [sets]."""
    import torch

    kept = counts(torch.tensor(widths, dtype=torch.float64)).round().int().view(-1, 2).tolist()
    return [(ins, outs) for ins, outs in kept]
