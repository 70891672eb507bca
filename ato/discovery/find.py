"""Find the groups of a network: read from a graph, proven on random weights, and looked for again in its modules."""

import time
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from atopipe.ato import layers
from atopipe.ato.discovery.capture import GraphError, Twin, cause, remedy, trace_twin
from atopipe.ato.discovery.invariance import Probe
from atopipe.ato.discovery.limits import LimitError, limits
from atopipe.ato.discovery.reader import GraphReader
from atopipe.ato.execution import is_out_of_memory
from atopipe.ato.groups import Groups, GroupSet, NoGroupsError, Unprunable

FIND_SECONDS = 300.0  # of processor time; a large network takes 100
PROOF_GIBIBYTES = 64
LATE = "the search for widths takes more than {:g} s of processor time"
Say = Callable[[int, float], None]


def find_groups(
    model: nn.Module,
    example: Tensor,
    generator: torch.Generator,
    *,
    seconds: float = FIND_SECONDS,
    on_progress: Say = lambda found, seconds: None,
) -> Groups:
    """The groups of `model` whose removal is proven not to change what the rest computes; `model` is not modified.

    `example`: one image [1, C, H, W]. First the whole network is read; then, level by level, those of its modules
    which hold layers that were not understood or not proven. What cannot be pruned is listed in `unprunable` with its
    reason; `proven_in_training` is false where outputs in training mode are random. What is not proven after so many
    `seconds` of processor time is not pruned; before each step, `on_progress` is told how many widths are proven, and
    the seconds so far. Raises GraphError when the network does not give logits, NoGroupsError when nothing is left to
    prune.
    """
    with torch.random.fork_rng(devices=[]):  # dropout draws from the global generator, which must not notice
        search = _Search(trace_twin(model, example), _probe(model, example, generator), seconds, on_progress)
        search.descend()
    in_training = not search.probe.random_in_training
    proven = Groups(tuple(search.proven), tuple(search.whole()), in_training)
    if not proven.sets:
        reasons = "; ".join(f"{u.name}: {u.reason}" for u in proven.unprunable[:3]) or "it has no prunable layer"
        raise NoGroupsError(
            f"{type(model).__name__} has no channels that can be removed ({reasons}): remove these obstacles, or "
            "choose another model"
        )
    return proven


def _probe(model: nn.Module, example: Tensor, generator: torch.Generator) -> Probe:
    try:
        return Probe(model, example, generator)
    except Exception as error:  # whatever the network's code raises
        if is_out_of_memory(error):
            raise
        raise GraphError(
            f"{type(model).__name__} does not run in float64 on random weights and in training mode, as a proof of "
            f"removal needs ({cause(error)}); {remedy(error)}"
        ) from error


class _Search:
    """`proven`: sets that can be removed together. `refused`: widths that were seen, the widest view first."""

    def __init__(self, twin: Twin, probe: Probe, seconds: float, on_progress: Say) -> None:
        self.twin, self.probe, self.on_progress = twin, probe, on_progress
        self.seconds, self.started, self.begun = seconds, time.thread_time(), time.perf_counter()
        self.reader = GraphReader(twin)
        self.layers = [name for name, m in twin.model.named_modules() if isinstance(m, layers.MATRIX_LAYERS)]
        self.proven: list[GroupSet] = []
        self.refused: list[Unprunable] = []

    def descend(self) -> None:
        """Read the whole network, then the modules in it, until nothing is left that could be understood better."""
        level = [""]
        while level:
            found = [width for scope in level for width in self._read(scope)]
            self.refused += [width for width in found if isinstance(width, Unprunable)]
            candidates = self._disjoint([width for width in found if isinstance(width, GroupSet)])
            failures = self._failures(candidates)
            self.proven += [s for s in candidates if s.name not in failures]
            self.refused += [
                Unprunable(s.name, s.size, failures[s.name], s.layers) for s in candidates if s.name in failures
            ]
            level = [child for scope in level for child in self._children(scope)]

    def _left(self) -> float:
        """Seconds of processor time; the user is told that it goes on."""
        self.on_progress(len(self.proven), time.perf_counter() - self.begun)
        return self.seconds - (time.thread_time() - self.started)

    def _failures(self, candidates: list[GroupSet]) -> dict[str, str]:
        late = dict.fromkeys((s.name for s in candidates), LATE.format(self.seconds))
        left = self._left()
        try:
            with limits(left, PROOF_GIBIBYTES):
                return self.probe.failures(self.proven, candidates) if left > 0 else late
        except LimitError:
            return late

    def _read(self, scope: str) -> list[GroupSet | Unprunable]:
        if scope not in self.twin.calls:
            return []
        left = self._left()
        if left <= 0:
            return [self._unseen(name, LATE.format(self.seconds)) for name in self._inside(scope)]
        try:
            return self.reader.read(scope, self.twin.calls[scope], left)
        except GraphError as error:
            return [self._unseen(name, str(error)) for name in self._inside(scope)]

    def _disjoint(self, sets: list[GroupSet]) -> list[GroupSet]:
        """The sets whose channels belong to no other; an earlier claim counts."""
        taken = {claim for group_set in self.proven for claim in _claims(group_set)}
        free = []
        for group_set in sets:
            claims = _claims(group_set)
            if taken.isdisjoint(claims):
                taken |= claims
                free.append(group_set)
            else:
                reason = "some of its channels belong to another width as well"
                self.refused.append(Unprunable(group_set.name, group_set.size, reason, group_set.layers))
        return free

    def _children(self, scope: str) -> list[str]:
        """The modules within `scope` in which a width may begin and end that is not proven yet."""
        done = {layer for group_set in self.proven for layer in group_set.layers}
        done |= {layer for width in self.refused if width.final for layer in width.layers}
        prefix = f"{scope}." if scope else ""
        children = [f"{prefix}{name}" for name, _ in self.twin.model.get_submodule(scope).named_children()]
        inside = {child: self._inside(child) for child in children}
        return [child for child, layers in inside.items() if len(layers) > 1 and not done.issuperset(layers)]

    def _inside(self, scope: str) -> list[str]:
        return [name for name in self.layers if not scope or name.startswith(f"{scope}.")]

    def whole(self) -> list[Unprunable]:
        """Every layer's width that is not proven, once, with the first reason that was found."""
        told = {layer for group_set in self.proven for layer in group_set.layers}
        left = []
        unseen = [self._unseen(name, "it is not called as a layer") for name in self.layers]
        for width in (*self.refused, *unseen):
            untold = [name for name in self.layers if name in width.layers and name not in told]
            if untold:
                told |= width.layers
                left.append(width if width.name in untold else replace(width, name=untold[0]))
        return left

    def _unseen(self, name: str, reason: str) -> Unprunable:
        return Unprunable(name, layers.channels(self.twin.model.get_submodule(name), "out"), reason, frozenset({name}))


def _claims(group_set: GroupSet) -> set[tuple[str, str, int]]:
    return {(m.module, m.axis, index) for m in group_set.members for index in m.index.tolist()}
