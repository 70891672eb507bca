"""Train the weights and the controller together, and remove the masked groups on the way (ATO, algorithm 1)."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from atopipe.ato import collectives
from atopipe.ato.execution import PLAIN, Execution
from atopipe.ato.groups import Groups
from atopipe.ato.recipe import Recipe
from atopipe.ato.removal.decay import Removal
from atopipe.ato.removal.shrink import expand
from atopipe.ato.removal.slices import scale_groups
from atopipe.ato.removal.structure import Structure, structure_of
from atopipe.ato.schedule import Phase, Schedule, learning_rate_factor
from atopipe.ato.search.budget import Budget
from atopipe.ato.search.mask_search import MakeSearch, MaskSearch, SearchProblem
from atopipe.ato.search.searches import SEARCHES
from atopipe.ato.search.selection import Align, ChooseMask, WidthSteps, check_budgets, choose_mask, kept_fractions
from atopipe.ato.snapshot import Snapshot, joined, of_generators, restore_generators, tensors_only
from atopipe.ato.training.loop import (
    NO_CHECKPOINTS,
    Checkpointer,
    EpochRecord,
    EvalBatches,
    Report,
    TrainBatches,
    run_epochs,
)
from atopipe.ato.training.norm_estimates import Calibration, lag_of
from atopipe.ato.training.objective import Objective
from atopipe.ato.training.weights import WeightTrainer


@dataclass(frozen=True)
class Trained:
    """The network at full width with its masked groups exactly zero, its mask [G] (1 keep), and how it got there."""

    model: nn.Module
    mask: Tensor
    history: tuple[EpochRecord, ...]


class Trainer:
    """All state of a training run; one call of `step` per batch moves it forward."""

    def __init__(
        self,
        model: nn.Module,
        groups: Groups,
        budgets: Sequence[Budget],
        recipe: Recipe,
        steps: int,
        generator: torch.Generator,
        execution: Execution = PLAIN,
        make_search: MakeSearch | None = None,
        choose: ChooseMask = choose_mask,
        objective: Objective | None = None,
        head: str | None = None,
        calibration: Calibration | None = None,
        width_steps: WidthSteps | None = None,
    ) -> None:
        self.align: Align = recipe.align if width_steps is None else width_steps
        check_budgets(groups, budgets, self.align)
        self.groups, self.budgets, self.recipe, self.generator = groups, budgets, recipe, generator
        self.schedule = Schedule.of(recipe.phases, steps)
        self.controller_steps = self.schedule.controller_steps(recipe.controller.every, recipe.controller.least_steps)
        self.device = next(model.parameters()).device
        problem = SearchProblem(model, groups, budgets, recipe, generator, execution, choose, width_steps)
        self.search: MaskSearch | None = (make_search or SEARCHES[recipe.search])(problem)  # until the mask is frozen
        self.execution, self.calibration = execution, calibration
        self.weights = WeightTrainer(model, recipe.weights, execution, generator, objective, head)
        self.removal = Removal(model, groups, recipe.projection)
        self.finished_steps = 0
        self.frozen_mask: Tensor | None = None  # on the device
        self.full: tuple[nn.Module, Structure] | None = None  # the network before it was cut, and the cut

    @property
    def phase(self) -> Phase:
        """The phase of the next step."""
        return self.schedule.phase(self.finished_steps)

    @property
    def total_steps(self) -> int:
        """TrainingRun of the whole run."""
        return self.schedule.total

    @property
    def network(self) -> nn.Module:
        """The network as it would be delivered now: at full width until it is cut."""
        return self.weights.delivered

    def step(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """One step on a batch; returns loss and number of correct predictions as tensors, without waiting for them."""
        rate = self.learning_rate()
        if self.full is None:
            self.removal.remember()
        result = self.weights.step(images, labels, rate)
        self._remove(rate)
        self.weights.average_in()
        if self.search is not None and self.finished_steps in self.controller_steps:
            progress = self.schedule.search_progress(self.finished_steps + 1)
            self.search.step(images, labels, progress)
        self._advance()
        return result

    def _remove(self, rate: float) -> None:
        """Move the groups that are to go, as far as this step's phase asks for."""
        settings = self.recipe.projection
        if self.full is not None:
            return
        if self.frozen_mask is not None:
            left = max(self.schedule.decay_end - self.finished_steps, 1)  # once zero, held at zero
            self.removal.step(self.frozen_mask < 0.5, settings.decay_lambda * rate, left)
        elif self.phase is Phase.SEARCH and settings.search_lambda > 0:
            self.removal.step(self._likely_mask() < 0.5, settings.search_lambda * rate)

    def _advance(self) -> None:
        """Count the step; freeze the mask where the search ends, cut the network where its masked groups are zero."""
        self.finished_steps += 1
        if self.search is not None and self.finished_steps == self.schedule.search_end:
            self._freeze(self.search.best_mask())
        if self.finished_steps == self.schedule.decay_end:
            scale_groups(self.network, self.groups, self._mask())  # averages lag behind
            if self.recipe.live_shrink:
                self._cut()
        if self.finished_steps == self.total_steps and self.calibration is not None:
            self.calibration.settle(self.network)

    def look(self) -> AbstractContextManager[None]:
        """While active, `network` has the statistics that it would be delivered with.

        They are estimated while its weights, or what was removed from it, move faster than they follow.
        """
        last = min(self.schedule.decay_end + lag_of(self.network), self.total_steps - 1)
        if self.calibration is None or not self.schedule.search_end < self.finished_steps <= last:
            return nullcontext()
        return self.calibration.look(self.network)

    def _freeze(self, mask: Tensor) -> None:
        collectives.broadcast(mask)
        self.frozen_mask, self.search = mask.to(self.device), None

    def _cut(self) -> None:
        """Go on with the small network: zero groups can never matter again, so keeping them would only cost time."""
        full = self.weights.model
        structure = structure_of(full, self.groups, self._mask())
        self.weights.cut(structure)
        self.full = full.cpu(), structure  # waits for its last use where memory is not scarce

    def kept(self) -> dict[str, float]:
        """Every budget's cost at the frozen mask or, before, at the likely one; fractions of dense, by name."""
        if self.phase is Phase.DENSE:
            return {budget.cost.name: 1.0 for budget in self.budgets}
        return kept_fractions(self._likely_mask(), self.groups, self.budgets, self.align)

    def learning_rate(self) -> float:
        """The weights' learning rate of the next step."""
        settings, schedule = self.recipe.weights, self.schedule
        held = schedule.decay_end if settings.decay_from == "cut" else 0
        factor = learning_rate_factor(self.finished_steps, schedule.total, settings.warmup, held)
        return settings.learning_rate * factor

    def trained_model(self) -> tuple[nn.Module, Tensor]:
        """The network at full width, masked groups exactly zero, and its mask; after the decay phase only."""
        if self.finished_steps < self.schedule.decay_end:
            raise RuntimeError("the masked groups are not zero before the decay phase has ended")
        if self.full is None:
            return self.network, self._mask()
        model, structure = self.full
        expand(self.network, model, structure)
        return model, self._mask()

    def snapshot(self) -> Snapshot:
        """The whole run now: the search while it lasts; after the cut, the full network beside the small one."""
        parts = {"weights": self.weights.snapshot(), "generators": of_generators(self.generator)}
        if self.search is not None:
            parts["search"] = self.search.snapshot()
        else:
            parts["frozen"] = tensors_only(mask=self._mask())
        if self.full is not None:
            parts["full"] = Snapshot(self.full[0].state_dict(), {})
        return joined(**parts, steps=Snapshot({}, {"finished": self.finished_steps}))

    def restore(self, snapshot: Snapshot) -> None:
        """Load a snapshot into a run that has not begun and was made of the same network, groups and recipe."""
        frozen, full = snapshot.part("frozen").tensors, snapshot.part("full").tensors
        if "mask" in frozen:
            self._freeze(frozen["mask"])
        elif self.search is not None:
            self.search.restore(snapshot.part("search"))
        if full:
            self.weights.model.load_state_dict(full)
            self._cut()
        self.weights.restore(snapshot.part("weights"))
        self.finished_steps = snapshot.part("steps").values["finished"]
        restore_generators(self.generator, snapshot.part("generators"))

    def _likely_mask(self) -> Tensor:
        """The frozen mask [G] or, before, what would be kept now."""
        return self.search.likely_mask() if self.search is not None else self._mask()

    def _mask(self) -> Tensor:
        if self.frozen_mask is None:
            raise RuntimeError("there is no mask before the search has ended")
        return self.frozen_mask


def train(
    model: nn.Module,
    groups: Groups,
    budgets: Sequence[Budget],
    *,
    train_batches: TrainBatches,
    val_batches: EvalBatches,
    recipe: Recipe,
    generator: torch.Generator,
    report: Report,
    execution: Execution = PLAIN,
    make_search: MakeSearch | None = None,
    choose: ChooseMask = choose_mask,
    objective: Objective | None = None,
    head: str | None = None,
    calibration: Calibration | None = None,
    width_steps: WidthSteps | None = None,
    checkpointer: Checkpointer = NO_CHECKPOINTS,
) -> Trained:
    """Train `model` and prune it until every budget holds; every epoch is reported.

    `model` is consumed: use the one returned. Raises BudgetError before the first step when a target cannot be reached,
    DivergedError when the loss is no longer finite. Dropout and the like draw from torch's global generator. Where
    `checkpointer` has a snapshot of this run, it resumes from there, to the same result. `make_search`: where the
    mask comes from, if not from the search that the recipe names; `choose`: how scores become the frozen mask;
    `objective`: what the weights learn, if not cross-entropy; `head`: the layer of the logits; `calibration`: images
    for the statistics of what is delivered; `width_steps`: in the place of the recipe's align, where measured.
    """
    steps = recipe.epochs * len(train_batches)
    trainer = Trainer(
        model,
        groups,
        budgets,
        recipe,
        steps,
        generator,
        execution,
        make_search,
        choose,
        objective=objective,
        head=head,
        calibration=calibration,
        width_steps=width_steps,
    )
    history = run_epochs(trainer, recipe.epochs, train_batches, val_batches, report, checkpointer)
    trained, mask = trainer.trained_model()
    return Trained(trained.eval(), mask, history)
