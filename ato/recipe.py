"""How a run trains: plain settings without behaviour, readable as a small YAML file (no heavy imports here)."""

from dataclasses import dataclass, field
from typing import Literal

Align = int | Literal["auto"]


@dataclass(frozen=True)
class WeightSettings:
    """How the network's weights are trained.

    The learning rate rises linearly over the first `warmup` (fraction of the run) and falls to zero along a cosine.
    `decay_from`: where the cosine begins: right after the warm-up, or once a pruning run has cut its network, to keep
    the rate high while weights make up for what is removed. `head_rate`: the learning rate of the layer that gives
    the logits, as a multiple of the others'.
    `mixup`: alpha of its Beta distribution; `ema`: decay per step of the weights' moving average, which is then what
    is validated and delivered; `clip_norm`: largest norm of the whole gradient. 0 leaves out any of the three.
    """

    optimizer: Literal["adamw", "sgd"] = "adamw"
    learning_rate: float = 2e-3
    weight_decay: float = 0.05
    momentum: float = 0.9
    warmup: float = 0.15
    decay_from: Literal["warmup", "cut"] = "warmup"
    head_rate: float = 1.0
    label_smoothing: float = 0.1
    mixup: float = 0.0
    ema: float = 0.0
    clip_norm: float = 0.0

    def __post_init__(self) -> None:
        _require("weights.learning_rate", self.learning_rate, self.learning_rate > 0, "above 0")
        _require("weights.weight_decay", self.weight_decay, self.weight_decay >= 0, "0 or more")
        _require("weights.momentum", self.momentum, 0 <= self.momentum < 1, "in [0, 1)")
        _require("weights.warmup", self.warmup, 0 <= self.warmup < 1, "in [0, 1)")
        _require("weights.head_rate", self.head_rate, self.head_rate > 0, "above 0")
        _require("weights.label_smoothing", self.label_smoothing, 0 <= self.label_smoothing < 1, "in [0, 1)")
        _require("weights.mixup", self.mixup, self.mixup >= 0, "0 or more")
        _require("weights.ema", self.ema, 0 <= self.ema < 1, "in [0, 1)")
        _require("weights.clip_norm", self.clip_norm, self.clip_norm >= 0, "0 or more")


@dataclass(frozen=True)
class PhaseSettings:
    """The phases of a run as fractions of it; what they leave is trained on the small network alone."""

    dense: float = 0.1
    search: float = 0.35
    decay: float = 0.1

    def __post_init__(self) -> None:
        _require("phases.dense", self.dense, 0 <= self.dense < 1, "in [0, 1)")
        _require("phases.search", self.search, 0 < self.search < 1, "in (0, 1)")
        _require("phases.decay", self.decay, 0 < self.decay < 1, "in (0, 1)")
        total = self.dense + self.search + self.decay
        _require("phases.dense + phases.search + phases.decay", total, total <= 1 + 1e-9, "at most 1")


@dataclass(frozen=True)
class ControllerSettings:
    """How the controller network searches for the mask (ATO, section 3.2; symbols of its released code in brackets).

    `every`: weight steps between two controller steps, fewer where a run would have less than `least_steps` of them;
    `batch_share`: the part of a batch that such a step looks at;
    `offset` [base] and `temperature` [T] of the Gumbel-sigmoid;
    `budget_weight` [2 * reg_w] and `margin` (half-width of the penalty's dead zone, a fraction of the dense FLOPs);
    `anneal`: fraction of the search during which the budget falls from 1 to the target; `statistics`: what the
    normalisation layers use in the controller step, the batch's own statistics or the running ones;
    `distillation`: the part of its loss that compares the masked network's outputs with the whole network's, at the
    temperature of section `distillation`, in the place of labels.
    """

    learning_rate: float = 3e-3
    weight_decay: float = 0.01
    every: int = 12
    least_steps: int = 200
    batch_share: float = 0.5
    offset: float = 3.0
    temperature: float = 1.0
    budget_weight: float = 8.0
    margin: float = 0.0
    anneal: float = 0.8
    statistics: Literal["batch", "running"] = "batch"
    distillation: float = 0.0

    def __post_init__(self) -> None:
        _require("controller.learning_rate", self.learning_rate, self.learning_rate > 0, "above 0")
        _require("controller.weight_decay", self.weight_decay, self.weight_decay >= 0, "0 or more")
        _require("controller.every", self.every, self.every >= 1, "1 or more")
        _require("controller.least_steps", self.least_steps, self.least_steps >= 1, "1 or more")
        _require("controller.batch_share", self.batch_share, 0 < self.batch_share <= 1, "above 0 and at most 1")
        _require("controller.temperature", self.temperature, self.temperature > 0, "above 0")
        _require("controller.budget_weight", self.budget_weight, self.budget_weight > 0, "above 0")
        _require("controller.margin", self.margin, 0 <= self.margin < 0.1, "in [0, 0.1)")
        _require("controller.distillation", self.distillation, 0 <= self.distillation <= 1, "in [0, 1]")
        _require("controller.anneal", self.anneal, 0 <= self.anneal <= 1, "in [0, 1]")


@dataclass(frozen=True)
class ProjectionSettings:
    """How masked groups are driven to zero: lambda of the proximal step during the search and during the decay.

    Whatever lambda is, the decay ends at exactly zero on its last step. `half_space`: epsilon of the half-space step
    (a group whose new value turns away from its old one is zeroed at once); none by default.
    """

    search_lambda: float = 0.0
    decay_lambda: float = 0.0
    half_space: float | None = None

    def __post_init__(self) -> None:
        _require("projection.search_lambda", self.search_lambda, self.search_lambda >= 0, "0 or more")
        _require("projection.decay_lambda", self.decay_lambda, self.decay_lambda >= 0, "0 or more")
        epsilon = self.half_space
        _require("projection.half_space", epsilon, epsilon is None or 0 <= epsilon < 1, "in [0, 1) or null")


@dataclass(frozen=True)
class DistillationSettings:
    """How a student learns from a teacher (Hinton et al. 2015): the teacher's part of the loss, and the temperature."""

    weight: float = 0.9
    temperature: float = 2.0

    def __post_init__(self) -> None:
        _require("distillation.weight", self.weight, 0 < self.weight <= 1, "above 0 and at most 1")
        _require("distillation.temperature", self.temperature, self.temperature > 0, "above 0")


@dataclass(frozen=True)
class Recipe:
    """A whole training run.

    `search`: where the mask comes from (`ato/search/mask_search.py`): the controller, or a rule to compare it with.
    `align`: widths are multiples of so many channels where that divides them; "auto" takes 4, 8 or 16 by width.
    `live_shrink`: cut the network as soon as its masked groups are zero, and train the rest of the run without them.
    `precision` of convolutions and matrix products; "auto": bfloat16 where the device has it, else float32.
    `compile`: run the weight step through torch.compile.
    `statistics_images`: training images from which the statistics of normalisation layers are estimated again for what
    is delivered, and a quarter of them for a look at a network that is being pruned; 0: never.
    `least_crop`: the least share of its area that a random crop of a photograph keeps; None: as its size suggests.
    """

    epochs: int = 24
    batch_size: int = 64
    align: Align = "auto"
    search: Literal["controller", "magnitude", "random", "uniform"] = "controller"
    live_shrink: bool = True
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    compile: bool = False
    statistics_images: int = 0
    least_crop: float | None = None
    weights: WeightSettings = field(default_factory=WeightSettings)
    phases: PhaseSettings = field(default_factory=PhaseSettings)
    controller: ControllerSettings = field(default_factory=ControllerSettings)
    projection: ProjectionSettings = field(default_factory=ProjectionSettings)
    distillation: DistillationSettings = field(default_factory=DistillationSettings)

    def __post_init__(self) -> None:
        _require("epochs", self.epochs, self.epochs >= 1, "1 or more")
        _require("batch_size", self.batch_size, self.batch_size >= 2, "2 or more")
        _require("statistics_images", self.statistics_images, self.statistics_images >= 0, "0 or more")
        crop = self.least_crop
        _require("least_crop", crop, crop is None or 0 < crop <= 1, "above 0 and at most 1, or null")
        _require("align", self.align, self.align == "auto" or self.align >= 1, "1 or more, or auto")


def _require(name: str, value: object, holds: bool, allowed: str) -> None:
    if not holds:
        raise ValueError(f"{name} is {value}, but must be {allowed}")
