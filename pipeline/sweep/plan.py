"""Which runs a sweep is made of: the product of everything that was given several values, and what they share."""

import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from atopipe.pipeline.config.schema import Config
from atopipe.pipeline.config.settings import FLAGS, TARGETS
from atopipe.pipeline.config.targets import Target
from atopipe.pipeline.stages import stages_of
from atopipe.pipeline.system.errors import UsageError

Values = Mapping[str, Any]  # dotted setting -> value
MakeConfig = Callable[[Values], Config]
PLAIN = {"model.name": "{}", "target_flops": "{}"}  # in the names of members; other settings are named


@dataclass(frozen=True)
class Axis:
    """A setting and the values it is given."""

    setting: str
    values: tuple[str, ...]

    @property
    def name(self) -> str:
        """As a user gives it."""
        return {"model.name": "--models", "seed": "--seeds"}.get(self.setting) or FLAGS.get(
            self.setting, f"--set {self.setting}"
        )


@dataclass(frozen=True)
class Member:
    """One run of a sweep: `chosen` are its values on the axes.

    `leader`: the member that goes first and does the stages `until` which all runs of other targets are the same; None
    where there is nothing to share.
    """

    name: str
    config: Config
    chosen: Mapping[str, str]
    leader: str | None = None
    until: str | None = None


def plan(axes: Sequence[Axis], make_config: MakeConfig, *, independent: bool) -> tuple[Member, ...]:
    """The runs, those that share a search next to each other. Raises UsageError for what cannot be a sweep."""
    for axis in axes:
        if not axis.values:
            raise UsageError(f"{axis.name} is empty: give values separated by commas")
    members = [
        _member(dict(zip((axis.setting for axis in axes), values, strict=True)), axes, make_config)
        for values in itertools.product(*(axis.values for axis in axes))
    ]
    _require_different(members, axes)
    shared = next((axis.setting for axis in axes if axis.setting in TARGETS and len(axis.values) > 1), None)
    groups = _groups(members, shared)
    return tuple(member for group in groups for member in _led(group, shared, make_config, independent=independent))


def _member(chosen: dict[str, str], axes: Sequence[Axis], make_config: MakeConfig) -> Member:
    varied = [axis.setting for axis in axes if len(axis.values) > 1]
    config = make_config(chosen)
    words = [_word(setting, chosen[setting], config) for setting in varied]
    return Member("-".join(words) or "run", config, chosen)


def _word(setting: str, value: str, config: Config) -> str:
    """A part of a member's name: 0.3, resnet20, seed1, epochs40."""
    last = setting.rpartition(".")[2].removeprefix("target_")
    shown = config.targets[TARGETS[setting]].written if setting in TARGETS else value
    return re.sub(r"[^\w.]+", "_", PLAIN.get(setting, last + "{}").format(shown)).strip("_.") or "_"


def _require_different(members: Sequence[Member], axes: Sequence[Axis]) -> None:
    known: dict[str, Member] = {}
    for member in members:
        key, twin = repr(member.config.identity()), known.get(repr(member.config.identity()))
        if twin is not None:
            differing = next(
                (axis for axis in axes if member.chosen[axis.setting] != twin.chosen[axis.setting]), axes[0]
            )
            first, second = twin.chosen[differing.setting], member.chosen[differing.setting]
            raise UsageError(f"{differing.name} gives {first} and {second}, which are the same run: leave one out")
        known[key] = member
    names = [member.name.lower() for member in members]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UsageError(f"two runs of this sweep would be named '{twice}': give values with other letters")


def _groups(members: Sequence[Member], shared: str | None) -> list[list[Member]]:
    """Those that differ in one target alone, together."""
    groups: dict[tuple[tuple[str, str], ...], list[Member]] = {}
    for member in members:
        rest = tuple((name, value) for name, value in member.chosen.items() if name != shared)
        groups.setdefault(rest, []).append(member)
    return list(groups.values())


def _led(
    group: Sequence[Member], shared: str | None, make_config: MakeConfig, *, independent: bool
) -> Iterator[Member]:
    """The members of a group, the leader first: the one that the search of all goes on to."""
    if shared is None or len(group) == 1:
        yield from group
        return
    ordered = list(group) if independent else _tightest_first(group, shared)
    if not independent:
        ordered = [_searching(member, ordered[0], make_config) for member in ordered]
    until = last_shared_stage(ordered[0].config)
    for member in ordered:
        yield replace(member, leader=ordered[0].name, until=until) if until else member


def _tightest_first(group: Sequence[Member], shared: str) -> list[Member]:
    targets: dict[str, Target] = {member.name: member.config.targets[TARGETS[shared]] for member in group}
    if len({target.is_fraction for target in targets.values()}) > 1:
        raise UsageError(
            f"{FLAGS[shared]} mixes fractions and amounts, which are in no order before the network is known: "
            "give one kind, or --independent"
        )
    return sorted(group, key=lambda member: targets[member.name].value)


def _searching(member: Member, leader: Member, make_config: MakeConfig) -> Member:
    far = {f"shared_search.target_{cost}": target.plain() for cost, target in leader.config.targets.items()}
    try:
        return replace(member, config=make_config({**member.chosen, **far}))
    except UsageError as error:
        raise UsageError(f"{error}; --independent trains every run by itself") from None


def last_shared_stage(config: Config) -> str | None:
    """The last stage, in their order, up to which no result depends on the targets; None where the first one does."""
    alike: list[str] = []
    for stage in stages_of(config):
        if set(stage.settings) & TARGETS.keys() or not set(stage.inputs) <= set(alike):
            continue
        alike.append(stage.name)
    return alike[-1] if alike else None
