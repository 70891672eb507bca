"""Every setting that a user can give: its name, its option, and what it may be. Messages and documents read this too.

The types and defaults are those of `schema`, which takes its limits from here; nothing heavy is loaded.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

COST_NAMES: Mapping[str, str] = {"flops": "FLOPs", "params": "parameters"}  # as users know them
TARGETS: Mapping[str, str] = {f"target_{cost}": cost for cost in COST_NAMES}
TARGET_HELP = (
    "--target-flops 0.3: the delivered network costs at most 30 % of the dense network's FLOPs (keep 30 %, "
    "prune 70 %); or 30%, or an amount like 1.2G (2 x multiply-accumulates)."
)
TARGET = "a fraction like 0.3 or 30% of the dense network's {0}, or an amount like {1} of {0}"


@dataclass(frozen=True)
class Limits:
    """From `low` to `high`, both allowed unless `low_is_out` or `high_is_out`; None: no limit."""

    low: float
    high: float | None = None
    low_is_out: bool = False
    high_is_out: bool = False

    def constraints(self) -> dict[str, Any]:
        """As pydantic's `Field` takes them."""
        low = {"gt" if self.low_is_out else "ge": self.low}
        return low if self.high is None else {**low, "lt" if self.high_is_out else "le": self.high}

    def words(self) -> str:
        """What follows "a number"."""
        if self.high is None:
            return f"above {self.low}" if self.low_is_out else f"from {self.low}"
        if self.low_is_out:
            return f"{'between' if self.high_is_out else 'above'} {self.low} and {self._most()}"
        return f"from {self.low} to {self.high}"

    def _most(self) -> str:
        return f"{self.high}" if self.high_is_out else f"at most {self.high}"


@dataclass(frozen=True)
class Setting:
    """A setting by its dotted name.

    `option`: with `/--no-...` where it is a switch, empty where it has none; `value`: a word for what is given;
    `help`: what it does; `several`: it may be given more than once; `limits`: of a number; `kind`: what it must be, in
    words that the limits complete; `hint`: said behind them.
    """

    name: str
    option: str = ""
    value: str | None = None
    help: str = ""
    several: bool = False
    limits: Limits | None = None
    kind: str = ""
    hint: str = ""

    @property
    def flag(self) -> str:
        """The option as it is switched on."""
        return self.option.partition("/")[0]

    def allowed(self) -> str:
        """What the value must be, in words; empty where its type says it all."""
        words = f"{self.kind or 'a number'} {self.limits.words()}" if self.limits else self.kind
        return f"{words}: {self.hint}" if self.hint else words


FRACTION, POSITIVE = Limits(0, 1), Limits(0, low_is_out=True)
ONE_POINT = "0.01 allows one point of top-1"

TRAINING = (
    Setting(
        "model.name",
        "--model",
        help="torchvision classifier, CIFAR network (resnet56), timm/NAME, your_pkg.mod:factory or net.py:factory.",
    ),
    Setting("model.args", "--model-args", "K=V", "An argument of its builder; may be repeated.", several=True),
    Setting("model.weights", "--weights", "FILE", "Start from these: safetensors, or a state dict saved by torch."),
    Setting("model.keep", "--keep", "PATTERN", "Layers whose widths stay whole, e.g. 'layer4.*'.", several=True),
    Setting("model.only", "--only", "PATTERN", "Layers outside of which all widths stay whole.", several=True),
    Setting("target_flops", "--target-flops", "TARGET", TARGET_HELP, kind=TARGET.format("FLOPs", "1.2G")),
    Setting(
        "target_params",
        "--target-params",
        "TARGET",
        "The same for parameters (0.4, 40%, 4M); both may be given.",
        kind=TARGET.format("parameters", "4M"),
    ),
    Setting(
        "recipe.align",
        "--align",
        "N",
        "Widths are multiples of N channels, or auto (default): 4, 8 or 16 by width.",
        kind="auto or a whole number of channels",
    ),
    Setting(
        "recipe.search",
        "--search",
        "NAME",
        "Where the mask comes from: controller (default), magnitude, random, uniform.",
    ),
    Setting(
        "recipe.live_shrink",
        "--live-shrink/--no-live-shrink",
        help="Cut the network as soon as its masked channels are zero (default).",
    ),
    Setting(
        "recipe.precision",
        "--precision",
        "FORMAT",
        "auto (default: bfloat16 where the device has it), float32 or bfloat16.",
    ),
    Setting("recipe.compile", "--compile/--no-compile", help="Run the weight step through torch.compile."),
    Setting("data.source", "--data", "SOURCE", "{sources}; default: digits."),
    Setting(
        "data.input_size",
        "--input-size",
        "N",
        "Pixels of the square input (default: what the images are).",
        limits=Limits(8, 4096),
        kind="a whole number of pixels",
    ),
    Setting("recipe", "--recipe", "NAME", "How to train: a recipe's name (default quick) or YAML file."),
    Setting("recipe.epochs", "--epochs", "N", "Epochs of training."),
    Setting("recipe.batch_size", "--batch-size", "N", "Images per training step."),
    Setting(
        "seed",
        "--seed",
        "N",
        "Seed of everything random (default 0).",
        limits=Limits(0, 2**32 - 1),
        kind="a whole number",
    ),
    Setting("device", "--device", "NAME", "auto (default: CUDA if there, else CPU), cpu or cuda."),
    Setting(
        "checkpoint_minutes",
        "--checkpoint-minutes",
        "N",
        "Minutes of training that an interruption may cost (default 10).",
        limits=Limits(0, 1440),
        kind="a number of minutes",
    ),
    Setting(
        "threads",
        "--threads",
        "N",
        "CPU threads (default: all that this process may use).",
        limits=Limits(1, 1024),
        kind="a whole number",
    ),
)
STARTING = (
    Setting(
        "baseline",
        "--baseline/--no-baseline",
        help="Train the dense network as well, by the same recipe, to compare with.",
    ),
    Setting(
        "preflight",
        "--preflight/--no-preflight",
        help="Rehearse removal, export and parity before the first epoch (default).",
    ),
)
VARIANTS = (
    Setting(
        "variants",
        "--variants",
        "NAME,...",
        "Formats to try, e.g. fp32,fp16,int8; those that pay here are delivered beside fp32 (default fp32 only).",
        kind="a list of names like [fp32, int8]",
    ),
)
GATES = (
    Setting(
        "gates.max_accuracy_drop",
        "--max-accuracy-drop",
        "FRACTION",
        "Top-1 at most so far below the dense network's (0.01: one point); needs --baseline.",
        limits=FRACTION,
        hint=ONE_POINT,
    ),
    Setting(
        "gates.min_accuracy",
        "--min-accuracy",
        "FRACTION",
        "Top-1 of the ONNX file at least this.",
        limits=Limits(0, 1, low_is_out=True),
        hint="0.9 asks for a top-1 of 90 %",
    ),
    Setting(
        "gates.min_speedup",
        "--min-speedup",
        "TIMES",
        "At least so many times as fast as the dense network.",
        limits=POSITIVE,
    ),
    Setting(
        "gates.max_latency_ms", "--max-latency-ms", "MS", "Median latency of one image at most this.", limits=POSITIVE
    ),
    Setting(
        "gates.max_size_mb",
        "--max-size-mb",
        "MB",
        "The ONNX file at most so large, in millions of bytes.",
        limits=POSITIVE,
    ),
    Setting(
        "gates.max_variant_drop",
        "--max-variant-drop",
        "FRACTION",
        "A variant's top-1 at most so far below that of fp32, or it is dropped (default 0.02).",
        limits=FRACTION,
        hint=ONE_POINT,
    ),
)
WITHOUT_OPTION = (
    Setting("data.val_fraction", limits=Limits(0, 1, low_is_out=True, high_is_out=True)),
    Setting("validation.latency_s", limits=Limits(0, 3600, low_is_out=True), kind="a number of seconds"),
)
SETTINGS: Mapping[str, Setting] = {
    setting.name: setting for setting in (*TRAINING, *STARTING, *VARIANTS, *GATES, *WITHOUT_OPTION)
}
FLAGS: Mapping[str, str] = {setting.name: setting.flag for setting in SETTINGS.values() if setting.flag}
