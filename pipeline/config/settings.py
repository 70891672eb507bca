"""Every setting that a user can give: its name, its option, and what it may be. Messages and documents read this too.

The types and defaults are those of `schema`, which takes its limits from here; nothing heavy is loaded.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

COST_NAMES: Mapping[str, str] = {"flops": "FLOPs", "params": "parameters", "latency": "latency"}  # as users know them
TARGETS: Mapping[str, str] = {f"target_{cost}": cost for cost in COST_NAMES}
TARGET_HELP = (
    "0.3 or 30%: keep at most 30 % of the dense network's FLOPs, prune 70 %; "
    "1.2G: keep at most 1.2 G FLOPs (2 x multiply-accumulates)."
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
    Setting(
        "model.args",
        "--model-args",
        "K=V",
        "Argument of the model's builder; may be repeated.",
        several=True,
        kind="numbers, text, true, false or null by name",
    ),
    Setting(
        "model.weights",
        "--weights",
        "NAME",
        "Trained weights to start from: default, a tag (IMAGENET1K_V2), or a file.",
    ),
    Setting(
        "model.keep_head",
        "--keep-head/--no-keep-head",
        help="Keep the classifier of the weights (default: if it is for as many classes).",
    ),
    Setting(
        "model.keep", "--keep", "PATTERN", "Do not prune these layers, e.g. 'layer4.*'; may be repeated.", several=True
    ),
    Setting("model.only", "--only", "PATTERN", "Prune these layers only; may be repeated.", several=True),
    Setting("target_flops", "--target-flops", "TARGET", TARGET_HELP, kind=TARGET.format("FLOPs", "1.2G")),
    Setting(
        "target_params",
        "--target-params",
        "TARGET",
        "The same for parameters (0.4, 40%, 4M); both may be given.",
        kind=TARGET.format("parameters", "4M"),
    ),
    Setting(
        "target_latency",
        "--target-latency",
        "TARGET",
        "The same for latency (0.4, 40%, 8ms), kept by measurement where the mask is frozen.",
        kind=TARGET.format("latency", "8ms"),
    ),
    Setting(
        "latency_table",
        "--latency-table",
        "FILE",
        "latency.json of the device to train for, see 'atopipe profile' (default: this machine is timed).",
    ),
    Setting(
        "deployment.provider",
        "--deploy-provider",
        "NAME",
        "Where latency counts: cpu (default), cuda or tensorrt.",
    ),
    Setting(
        "deployment.threads",
        "--deploy-threads",
        "N",
        "Threads of ONNX Runtime where latency counts (default 1).",
        limits=Limits(1, 1024),
        kind="a whole number",
    ),
    Setting(
        "deployment.batch",
        "--deploy-batch",
        "N",
        "Images per run where latency counts (default 1).",
        limits=Limits(1, 4096),
        kind="a whole number",
    ),
    Setting(
        "recipe.align",
        "--align",
        "N",
        "Keep multiples of N channels; auto (default): 4, 8 or 16 by width, or as measured for a latency target.",
        kind="auto or a whole number of channels",
    ),
    Setting(
        "recipe.search",
        "--search",
        "NAME",
        "Pruning criterion: controller (default), magnitude, random or uniform.",
    ),
    Setting(
        "recipe.live_shrink",
        "--live-shrink/--no-live-shrink",
        help="Remove pruned channels as soon as they are zero (default).",
    ),
    Setting(
        "recipe.precision",
        "--precision",
        "FORMAT",
        "auto (default: bfloat16 if supported), float32 or bfloat16.",
    ),
    Setting("recipe.compile", "--compile/--no-compile", help="Run the weight step through torch.compile."),
    Setting("data.source", "--data", "SOURCE", "{sources}; default: digits."),
    Setting(
        "data.input_size",
        "--input-size",
        "N",
        "Pixels of the square input (default: size of weights or images).",
        limits=Limits(8, 4096),
        kind="a whole number of pixels",
    ),
    Setting(
        "data.normalize",
        "--normalize",
        "BY",
        "Mean and deviation: weights (default if they have a name), data, or MEAN:STD.",
        kind="weights, data, or MEAN:STD of pixels from 0 to 1: 0.485,0.456,0.406:0.229,0.224,0.225",
    ),
    Setting("recipe", "--recipe", "NAME", "Training recipe: a name (default quick) or a YAML file."),
    Setting("recipe.epochs", "--epochs", "N", "Epochs of training."),
    Setting("recipe.batch_size", "--batch-size", "N", "Images per training step."),
    Setting(
        "seed",
        "--seed",
        "N",
        "Seed of all random numbers (default 0).",
        limits=Limits(0, 2**32 - 1),
        kind="a whole number",
    ),
    Setting("device", "--device", "NAME", "auto (default: CUDA if available, else CPU), cpu or cuda."),
    Setting(
        "checkpoint_minutes",
        "--checkpoint-minutes",
        "N",
        "Minutes between checkpoints (default 10).",
        limits=Limits(0, 1440),
        kind="a number of minutes",
    ),
    Setting(
        "threads",
        "--threads",
        "N",
        "CPU threads (default: all available to this process).",
        limits=Limits(1, 1024),
        kind="a whole number",
    ),
)
STARTING = (
    Setting(
        "teacher",
        "--teacher",
        "NAME",
        "Distil from a trained network: baseline (with --baseline), or weights of this model, named as for --weights.",
    ),
    Setting(
        "baseline",
        "--baseline/--no-baseline",
        help="Also train the dense network, by the same recipe, for comparison.",
    ),
    Setting(
        "preflight",
        "--preflight/--no-preflight",
        help="Check removal, export and parity before the first epoch (default).",
    ),
)
VARIANTS = (
    Setting(
        "variants",
        "--variants",
        "NAME,...",
        "Formats to try, e.g. fp32,fp16,int8; faster ones are delivered beside fp32 (default fp32).",
        kind="a list of names like [fp32, int8]",
    ),
)
GATES = (
    Setting(
        "gates.max_accuracy_drop",
        "--max-accuracy-drop",
        "FRACTION",
        "Largest top-1 drop against the dense network (default 0.05 with --baseline; 1: no limit).",
        limits=FRACTION,
        hint=ONE_POINT,
    ),
    Setting(
        "gates.min_accuracy",
        "--min-accuracy",
        "FRACTION",
        "Smallest top-1 of the ONNX file.",
        limits=Limits(0, 1, low_is_out=True),
        hint="0.9 asks for a top-1 of 90 %",
    ),
    Setting(
        "gates.min_speedup",
        "--min-speedup",
        "TIMES",
        "Smallest speed-up over the dense network.",
        limits=POSITIVE,
    ),
    Setting("gates.max_latency_ms", "--max-latency-ms", "MS", "Largest median latency of one image.", limits=POSITIVE),
    Setting(
        "gates.max_size_mb",
        "--max-size-mb",
        "MB",
        "Largest ONNX file, in millions of bytes.",
        limits=POSITIVE,
    ),
    Setting(
        "gates.max_variant_drop",
        "--max-variant-drop",
        "FRACTION",
        "Drop a variant that may lose more top-1 than this against fp32 (default 0.02).",
        limits=FRACTION,
        hint=ONE_POINT,
    ),
)
WITHOUT_OPTION = (
    Setting("data.fingerprint", kind="content, or left out"),
    Setting("data.val_fraction", limits=Limits(0, 1, low_is_out=True, high_is_out=True)),
    Setting("validation.latency_s", limits=Limits(0, 3600, low_is_out=True), kind="a number of seconds"),
    *(Setting(f"shared_search.{target.name}", kind=target.kind) for target in TRAINING if target.name in TARGETS),
)
SETTINGS: Mapping[str, Setting] = {
    setting.name: setting for setting in (*TRAINING, *STARTING, *VARIANTS, *GATES, *WITHOUT_OPTION)
}
FLAGS: Mapping[str, str] = {setting.name: setting.flag for setting in SETTINGS.values() if setting.flag}
