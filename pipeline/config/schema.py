"""The configuration of a run: one model per concern."""

from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PlainSerializer, PlainValidator, field_validator

from atopipe.ato.recipe import Recipe
from atopipe.pipeline.config.normalisation import parse_normalisation
from atopipe.pipeline.config.settings import SETTINGS, TARGETS
from atopipe.pipeline.config.targets import Target

# Settings that leave a run the same run.
HOW_NOT_WHAT = frozenset({"baseline", "variants", "validation", "gates", "threads", "checkpoint_minutes", "preflight"})
FULL = "fp32"
CONTENT = "content"
BASELINE = "baseline"  # as a teacher: the dense network of the run
DEFAULT_DROP = 0.05  # of top-1 against the dense network, where a baseline tells and no other limit is set
VARIANTS = (FULL, "fp16", "int8")  # formats of the delivered files; the first one is always there


def within(setting: str) -> Any:
    """The limits that the table of settings has for this one."""
    limits = SETTINGS[setting].limits
    return Field(**limits.constraints()) if limits else Field()


def _is_none(value: object) -> bool:
    """Of settings that came later: left out where they are not set, so that earlier runs keep their keys."""
    return value is None


Given = Annotated[str, Field(min_length=1)]  # an empty text is a variable that was not set


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ModelSettings(Section):
    """`name`: what `build_model` knows, called with `args`.

    `weights`: what to start from, a file or what `find_weights` knows: `default` or a tag of torchvision or timm.
    `keep_head`: whether their classifier is kept: only where it is for as many classes (None), always, or never.
    `keep`, `only`: patterns of layers that are not pruned, or that alone are.
    """

    name: Given
    args: dict[str, bool | int | float | str | None] = {}
    weights: Given | None = None
    keep_head: bool | None = Field(default=None, exclude_if=_is_none)
    keep: tuple[str, ...] = ()
    only: tuple[str, ...] = ()


class DataSettings(Section):
    """`input_size`: pixels of the square input, chosen from weights or images if absent.

    `normalize`: by the mean and deviation of the `weights`, of the `data`, or of `MEAN:STD`; of the weights by default
    where they have a name, else of the data. `val_fraction`: the share for validation if the data are not split yet.
    `fingerprint`: `content` has a large data set read whole to see whether it has changed; else size and time tell.
    """

    source: Given = "digits"
    input_size: Annotated[int, within("data.input_size")] | None = None
    normalize: str | None = Field(default=None, exclude_if=_is_none)
    val_fraction: Annotated[float, within("data.val_fraction")] = 0.2
    fingerprint: Literal["content"] | None = Field(default=None, exclude_if=_is_none)

    @field_validator("normalize")
    @classmethod
    def _check(cls, given: str | None) -> str | None:
        if given is not None:
            parse_normalisation(given)
        return given


class ValidationSettings(Section):
    """`latency_s`: seconds to spend on comparing latencies, and half as much again for every variant."""

    latency_s: Annotated[float, within("validation.latency_s")] = 10.0


class GateSettings(Section):
    """What the delivered model must reach, on the bad end of the measurement's interval; None: reported, not demanded.

    `max_accuracy_drop`: top-1 below the dense network's, as a fraction: where nothing is set, `DEFAULT_DROP` of a run
    with a baseline; 1 for no such gate. `min_speedup`: dense latency over shrunk;
    `max_size_mb`: of the ONNX file, in 1e6 bytes; `max_variant_drop`: top-1 of a variant below the ONNX file's.
    """

    max_accuracy_drop: Annotated[float, within("gates.max_accuracy_drop")] | None = None
    min_accuracy: Annotated[float, within("gates.min_accuracy")] | None = None
    min_speedup: Annotated[float, within("gates.min_speedup")] | None = None
    max_latency_ms: Annotated[float, within("gates.max_latency_ms")] | None = None
    max_size_mb: Annotated[float, within("gates.max_size_mb")] | None = None
    max_variant_drop: Annotated[float, within("gates.max_variant_drop")] = 0.02


class DeploymentSettings(Section):
    """Where latency counts: ONNX Runtime's `provider`, its `threads`, and images per run."""

    provider: Literal["cpu", "cuda", "tensorrt"] = "cpu"
    threads: Annotated[int, within("deployment.threads")] = 1
    batch: Annotated[int, within("deployment.batch")] = 1


LatencySetting = Annotated[Target, PlainValidator(Target.parse_latency), PlainSerializer(Target.plain)] | None
TargetSetting = Annotated[Target, PlainValidator(Target.parse), PlainSerializer(Target.plain)] | None


class SharedSearch(Section):
    """The targets that the search goes on to, at or below the run's own: runs with other targets can share it."""

    target_flops: TargetSetting = None
    target_params: TargetSetting = None
    target_latency: LatencySetting = None

    @property
    def targets(self) -> dict[str, Target]:
        """As those of the run."""
        return _targets(self)


class Config(Section):
    """Everything a run depends on; at least one target. What is in `HOW_NOT_WHAT` does not change what a run delivers.

    `latency_table`: what another device measured of a pack; `deployment`: where latency is measured and limited.
    `teacher`: what the pruned network learns from beside the labels, the `BASELINE`, or weights by file or name;
    `baseline`: train the dense network too, to compare with; `variants`: formats to try, fp32 included, a list or
    separated by commas; `gates`: what must be reached; `checkpoint_minutes`: at most so much training is lost.
    """

    model: ModelSettings
    target_flops: TargetSetting = None
    target_params: TargetSetting = None
    target_latency: LatencySetting = None
    shared_search: SharedSearch | None = Field(default=None, exclude_if=_is_none)
    latency_table: Given | None = None
    deployment: DeploymentSettings = DeploymentSettings()
    data: DataSettings = DataSettings()
    recipe: Recipe = Recipe()
    teacher: Given | None = Field(default=None, exclude_if=_is_none)
    baseline: bool = False
    variants: tuple[Literal["fp32", "fp16", "int8"], ...] = ("fp32",)
    validation: ValidationSettings = ValidationSettings()
    gates: GateSettings = GateSettings()
    seed: Annotated[int, within("seed")] = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: Annotated[int, within("threads")] | None = None
    checkpoint_minutes: Annotated[float, within("checkpoint_minutes")] = 10.0
    preflight: bool = True

    @field_validator("variants", mode="before")
    @classmethod
    def _split(cls, given: object) -> object:
        """Known variants in their own order, each once; what is unknown is left for the check that follows."""
        names = [name.strip() for name in given.split(",")] if isinstance(given, str) else given
        if not isinstance(names, list | tuple) or not {*VARIANTS} >= {*map(str, names)}:
            return names
        return tuple(name for name in VARIANTS if name in {FULL, *names})

    @property
    def targets(self) -> dict[str, Target]:
        """Cost -> how much of it may be kept, by the names of `ato.search.cost.COSTS`."""
        return _targets(self)

    @property
    def max_accuracy_drop(self) -> float | None:
        """The most top-1 that may be lost against the dense network; None where nothing is demanded."""
        limit = DEFAULT_DROP if self.gates.max_accuracy_drop is None else self.gates.max_accuracy_drop
        return limit if self.baseline and limit < 1 else None

    @property
    def has_variants(self) -> bool:
        """Whether variants in other formats than float32 are made."""
        return self.variants != (FULL,)

    def resolved(self) -> dict[str, Any]:
        """Every value in plain types; `load_config` of it gives the same configuration."""
        return self.model_dump(mode="json")

    def identity(self) -> dict[str, Any]:
        """What makes two runs the same run."""
        without = HOW_NOT_WHAT if self.target_latency else HOW_NOT_WHAT | {"deployment", "latency_table"}
        return {key: value for key, value in self.resolved().items() if key not in without}

    def slice_for(self, settings: Iterable[str]) -> dict[str, Any]:
        """The part of the configuration with these names: what a stage depends on."""
        resolved = self.resolved()
        return {name: resolved[name] for name in settings if name in resolved}


def _targets(section: Section) -> dict[str, Target]:
    given = {cost: getattr(section, name) for name, cost in TARGETS.items()}
    return {cost: target for cost, target in given.items() if target is not None}
