"""Every setting that has an option of the command line, and the budgets, by the names users know."""

from collections.abc import Mapping

FLAGS: Mapping[str, str] = {
    "model.name": "--model",
    "model.args": "--model-args",
    "model.weights": "--weights",
    "model.keep": "--keep",
    "model.only": "--only",
    "target_flops": "--target-flops",
    "target_params": "--target-params",
    "recipe.align": "--align",
    "recipe.search": "--search",
    "recipe.live_shrink": "--live-shrink",
    "recipe.precision": "--precision",
    "recipe.compile": "--compile",
    "data.source": "--data",
    "data.input_size": "--input-size",
    "recipe.epochs": "--epochs",
    "recipe.batch_size": "--batch-size",
    "baseline": "--baseline",
    "variants": "--variants",
    "gates.max_accuracy_drop": "--max-accuracy-drop",
    "gates.min_accuracy": "--min-accuracy",
    "gates.min_speedup": "--min-speedup",
    "gates.max_latency_ms": "--max-latency-ms",
    "gates.max_size_mb": "--max-size-mb",
    "gates.max_variant_drop": "--max-variant-drop",
    "seed": "--seed",
    "device": "--device",
    "threads": "--threads",
    "checkpoint_minutes": "--checkpoint-minutes",
    "preflight": "--preflight",
}
COST_NAMES: Mapping[str, str] = {"flops": "FLOPs", "params": "parameters"}  # as users know them
TARGETS: Mapping[str, str] = {f"target_{cost}": cost for cost in COST_NAMES}
