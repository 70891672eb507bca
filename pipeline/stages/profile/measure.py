"""Latency of a structure, measured on this machine before anything is removed: what the budget is settled by."""

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from atopipe.pipeline.config.schema import DeploymentSettings
from atopipe.pipeline.engine.deployment import session_arguments
from atopipe.pipeline.engine.stage import Context
from atopipe.pipeline.rundir.events import read_events
from atopipe.pipeline.stages.profile.pack import DENSE, Architecture
from atopipe.pipeline.system.errors import Inconclusive
from atopipe.pipeline.system.files import write_bytes

if TYPE_CHECKING:
    from torch import Tensor, nn

    from atopipe.ato.groups import Groups
    from atopipe.ato.search.budget import Budget
    from atopipe.ato.search.latency import FittedLatency
    from atopipe.ato.search.selection import Align, ChooseMask

MEASURED, SETTLED = "latency measured", "latency settled"  # events
SECONDS, ATTEMPTS = 3.0, 3  # of an interleaved measurement; a machine that is too busy gets longer ones


@dataclass(frozen=True, eq=False)
class LatencyMeter:
    """Measures widths against the dense network by the protocol of stage validate, on the bad end of the interval.

    `dense_ms`: the unit of a budget that is a fraction; None: of one that is an amount. `known`: what was measured
    before, by widths; `remember` keeps what is new, so that a resumed run decides by the same figures.
    """

    network: Architecture
    deployment: DeploymentSettings
    dense_ms: float | None
    seed: int
    remember: Callable[[Sequence[int], float], None]
    known: dict[tuple[int, ...], float] = field(default_factory=dict)

    def __call__(self, widths: "Tensor") -> float:
        """Milliseconds at the widths [sets]."""
        key = tuple(int(width) for width in widths)
        if key not in self.known:
            self.known[key] = self._measured(widths)
            self.remember(key, self.known[key])
        return self.known[key]

    def _measured(self, widths: "Tensor") -> float:
        import numpy as np

        from atopipe.validate.latency import time_interleaved

        deployment, shape = self.deployment, self._input_shape()
        images = np.random.default_rng(self.seed).standard_normal((deployment.batch, *shape)).astype(np.float32)
        with TemporaryDirectory() as scratch:
            small = Path(scratch) / "small.onnx"
            write_bytes(small, self.network.without_weights(widths))
            for attempt in range(ATTEMPTS):
                timings = time_interleaved(
                    [self.network.dense, small],
                    images,
                    **session_arguments(deployment),
                    budget_s=SECONDS * (attempt + 1),
                    seed=self.seed,
                )
                found = timings.compare(0, 1)
                if found.inconclusive_because is None:
                    break
            else:
                raise Inconclusive(
                    f"latency cannot be measured on this machine now: {found.inconclusive_because}: end what else runs "
                    "on it, and run again to resume"
                )
        if self.dense_ms is not None:
            return self.dense_ms * (found.ratio.high if found.ratio else 1.0)
        return found.second.interval_ms[1] if found.second.interval_ms else float("inf")

    def _input_shape(self) -> tuple[int, int, int]:
        from atopipe.validate.session import open_session

        return open_session(self.network.dense).input_shape()


def mask_choice(
    context: Context,
    model: "nn.Module",
    groups: "Groups",
    budgets: "Sequence[Budget]",
    fit: "FittedLatency | None",
) -> "ChooseMask":
    """How scores become a mask: with a budget in latency, whose cost is of `fit`, by widths measured within it.

    With the table of another device nothing can be measured: the largest error of the fit is left unused.
    """
    from atopipe.ato.search.selection import best_groups, choose_mask, select_widths
    from atopipe.ato.search.settle import HELD, settle_widths

    latency = next((budget for budget in budgets if budget.cost.name == "latency"), None)
    if latency is None or fit is None or context.workspace.job.rank > 0:
        return choose_mask  # rank 0 decides for all
    if context.config.latency_table is not None:
        safe = [replace(b, limit=b.limit * (1 - fit.error.largest)) if b is latency else b for b in budgets]
        return lambda scores, groups, _, align: best_groups(scores, groups, select_widths(scores, groups, safe, align))
    measure = _meter(context, model, groups, latency)

    def choose(scores: "Tensor", groups: "Groups", budgets: "Sequence[Budget]", align: "Align") -> "Tensor":
        started = time.perf_counter()
        widths, rounds = settle_widths(scores, groups, budgets, align, latency, measure)
        took = time.perf_counter() - started
        context.run.record.event(SETTLED, stage=context.stage.name, rounds=[asdict(r) for r in rounds], seconds=took)
        last = max((r for r in rounds if r.measured <= HELD * latency.limit), key=lambda r: r.measured)
        context.display.say(
            f"latency {len(rounds)} structures measured; {last.measured:.3g} ms of {latency.limit:.3g} ms allowed, "
            f"{last.predicted:.3g} ms predicted"
        )
        return best_groups(scores, groups, widths)

    return choose


def _meter(context: Context, model: "nn.Module", groups: "Groups", latency: "Budget") -> LatencyMeter:
    """The meter of this run; what an interrupted attempt at the stage measured is known."""
    key, stage = context.run.stages.key(context.stage), context.stage.name
    events = read_events(context.run.root / "events.jsonl")
    known = {tuple(e["widths"]): e["ms"] for e in events if e["event"] == MEASURED and e.get("key") == key}
    target = context.config.target_latency
    return LatencyMeter(
        Architecture(copy.deepcopy(model).to("meta"), groups, context.input("profile", f"pack/{DENSE}")),
        context.config.deployment,
        latency.cost.dense if target is not None and target.is_fraction else None,
        context.config.seed,
        lambda widths, ms: context.run.record.event(MEASURED, stage=stage, key=key, widths=list(widths), ms=ms),
        known,
    )
