"""Can every target be reached? Found out for all runs before the first one is trained."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from atopipe.pipeline.config.schema import Config
from atopipe.pipeline.engine.workspace import Workspace
from atopipe.pipeline.report.terminal import QuietDisplay
from atopipe.pipeline.sweep.plan import Member
from atopipe.pipeline.system.errors import UsageError

if TYPE_CHECKING:
    from torch import nn

    from atopipe.ato.groups import Groups

COUNTED = ("flops", "params")  # what a network costs is known before it is timed


def require_reachable(members: Sequence[Member]) -> None:
    """Raises UsageError that names every member whose FLOPs or parameters cannot be had, with what is wrong.

    A network is read once, for all members that prune the same. Targets in latency are known once it was timed.
    """
    alike: dict[str, list[Member]] = {}
    for member in members:
        config = member.config
        alike.setdefault(repr((config.model, config.data, config.recipe.align)), []).append(member)
    wrong = [text for group in alike.values() for text in _unreachable(group)]
    if wrong:
        raise UsageError("; ".join(wrong))


def _unreachable(members: Sequence[Member]) -> Iterator[str]:
    workspace = Workspace(members[0].config, QuietDisplay())
    with workspace.limited_threads():
        workspace.check_model()
        model = workspace.first_model()
        groups = workspace.groups(model)
        for member in members:
            if refusal := _refusal(workspace, member.config, model, groups):
                yield f"{member.name}: {refusal}"


def _refusal(workspace: Workspace, config: Config, model: "nn.Module", groups: "Groups") -> str | None:
    from atopipe.ato.search.budget import Budget, BudgetError
    from atopipe.ato.search.cost import COSTS
    from atopipe.ato.search.selection import check_budgets

    costs = {name: COSTS[name](model, groups, workspace.example) for name in config.targets if name in COUNTED}
    budgets = [Budget(cost, config.targets[name].limit(cost.dense)) for name, cost in costs.items()]
    try:
        check_budgets(groups, budgets, config.recipe.align)
    except BudgetError as error:
        return str(error)
    return None
