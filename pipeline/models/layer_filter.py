"""Which of the widths that can be pruned the user wants to be pruned: `--keep PATTERN`, `--only PATTERN`."""

from collections.abc import Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from atopipe.pipeline.system.errors import UsageError
from atopipe.pipeline.system.text import did_you_mean

if TYPE_CHECKING:
    from torch import nn

    from atopipe.ato.groups import Groups, GroupSet


def choose(groups: "Groups", model: "nn.Module", *, keep: Sequence[str], only: Sequence[str]) -> "Groups":
    """The groups without the sets that have a layer in `keep`, or no layer in `only` where that is given.

    Patterns are those of `fnmatch`, of whole module names: `layer4.*`, `*.downsample.0`. A width is pruned or kept as
    one, with all layers that share it. What is left out is listed as unprunable with its reason. Raises UsageError for
    a pattern that matches no module, or when nothing is left.
    """
    from atopipe.ato.groups import Unprunable

    modules = [name for name, _ in model.named_modules()]
    for option, pattern in [*(("--keep", p) for p in keep), *(("--only", p) for p in only)]:
        if not any(fnmatchcase(name, pattern) for name in modules):
            hint = did_you_mean(pattern, modules) or "'atopipe inspect' shows the names"
            raise UsageError(f"{option} '{pattern}' matches no layer of the network: {hint}")
    reasons = {s.name: _reason(s, keep, only) for s in groups.sets}
    left_out = tuple(
        Unprunable(s.name, s.size * s.channels_per_group, reason, s.layers, final=True)
        for s in groups.sets
        if (reason := reasons[s.name])
    )
    left = tuple(s for s in groups.sets if not reasons[s.name])
    chosen = replace(groups, sets=left, unprunable=groups.unprunable + left_out)
    if not chosen.sets:
        raise UsageError("--keep and --only leave nothing to prune: choose fewer or other patterns")
    return chosen


def _reason(group_set: "GroupSet", keep: Sequence[str], only: Sequence[str]) -> str | None:
    for pattern in keep:
        if any(fnmatchcase(layer, pattern) for layer in group_set.layers):
            return f"--keep '{pattern}'"
    if only and not any(fnmatchcase(layer, pattern) for layer in group_set.layers for pattern in only):
        return "no layer of it is named by --only"
    return None
