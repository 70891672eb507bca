"""What of which architecture can be pruned: every classifier of torchvision and many of timm, one after the other.

    python benchmarks/zoo.py run              # resumable: what is in results/zoo.json is not measured again
    python benchmarks/zoo.py run resnet50     # these only, again
    python benchmarks/zoo.py table            # writes docs/reference/models.md from results/zoo.json

Each model gets a separate process, its default input size, ten classes and random weights. Groups are found and
proven, random masks are drawn half-way between the dense and the smallest reachable FLOPs, the network is shrunk,
compared in float64, exported, and compared in ONNX Runtime. A model that takes longer than the limit is stopped.
"""

import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
RESULTS, PAGE = HERE / "results" / "zoo.json", HERE.parent / "docs" / "reference" / "models.md"
# Of the processor, whatever else the machine does; torchvision has models of up to 645 million parameters.
CPU_SECONDS = {"torchvision": 240, "timm": 60}
WALL_SECONDS = 1200
CLASSES = 10
LIBRARIES = ("torch", "torchvision", "timm", "torch-pruning", "onnx", "onnxscript", "onnxruntime")
SIZES = {"inception_v3": 299}
TIMM = """
    beit_base_patch16_224 botnet26t_256 eca_halonext26ts lambda_resnet26t gernet_m gcresnet33ts gcresnext26ts repvgg_a0
    mobileone_s0 resnet32ts regnetz_b16 cait_xxs24_224 coat_lite_tiny convit_tiny convmixer_768_32 convnext_atto
    convnext_tiny convnextv2_atto crossvit_9_240 cs3darknet_m cspdarknet53 cspresnet50 darknet53 cspnext_s davit_tiny
    deit_tiny_patch16_224 deit3_small_patch16_224 densenet121 densenetblur121d dla34 dla60_res2net dla60x dpn68 dpn92
    edgenext_small edgenext_xx_small efficientformer_l1 efficientformerv2_s0 efficientnet_b0 efficientnet_b3
    efficientnet_es efficientnetv2_rw_t fbnetc_100 mixnet_s mnasnet_100 mobilenetv2_100 spnasnet_100 tf_efficientnet_b0
    tf_efficientnetv2_s tf_mixnet_m tinynet_c efficientvit_b0 efficientvit_m0 eva02_tiny_patch14_224 fasternet_t0
    fastvit_t8 focalnet_tiny_srf gcvit_xxtiny ghostnet_100 ghostnetv2_100 hardcorenas_a hgnet_tiny hgnetv2_b0
    hiera_tiny_224 hrnet_w18_small inception_next_tiny inception_resnet_v2 inception_v3 inception_v4 lcnetv2_base
    levit_128s mambaout_femto coatnet_0_rw_224 coatnext_nano_rw_224 maxvit_tiny_rw_224 caformer_s18 convformer_s18
    poolformer_s12 poolformerv2_s12 gmixer_24_224 gmlp_s16_224 mixer_s32_224 resmlp_12_224 fbnetv3_b lcnet_100
    mobilenetv3_large_100 mobilenetv3_small_100 mobilevit_xxs mobilevit_s mobilevitv2_050 mvitv2_tiny nest_tiny
    nextvit_small eca_nfnet_l0 nf_regnet_b1 nf_resnet50 dm_nfnet_f0 pit_ti_224 pvt_v2_b0 rdnet_tiny regnetx_004
    regnety_004 regnetv_040 repghostnet_100 repvit_m1 res2net50_26w_4s resnest26d resnet18 resnet26d resnet50
    resnet50_gn resnetaa50 resnetblur50 resnetrs50 resnext50_32x4d seresnet50 ecaresnet26t wide_resnet50_2 resnetv2_50
    resnetv2_50x1_bit rexnet_100 rexnetr_100 selecsls42b legacy_seresnet18 legacy_seresnext26_32x4d sequencer2d_s
    shvit_s1 skresnet18 starnet_s1 swiftformer_xs swin_tiny_patch4_window7_224 swin_s3_tiny_224
    swinv2_tiny_window8_256 swinv2_cr_tiny_224 tiny_vit_5m_224 tnt_s_patch16_224 tresnet_m twins_svt_small
    twins_pcpvt_small vgg11_bn visformer_tiny vit_tiny_patch16_224 vit_small_patch32_224 vit_relpos_small_patch16_224
    vit_small_r26_s32_224 flexivit_small vitamin_small_224 volo_d1_224 ese_vovnet19b_dw ese_vovnet39b legacy_xception
    xception41 xcit_nano_12_p16_224
"""


def names() -> list[str]:
    """All models, as `atopipe --model` knows them."""
    from torchvision import models

    return [*models.list_models(module=models), *(f"timm/{name}" for name in TIMM.split())]


def measure(name: str) -> dict[str, Any]:
    """One model, in this process: what was found, or the one sentence with which it is refused."""
    import torch

    from atopipe.pipeline.system.failures import explain

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    started = time.process_time()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            measured = _measure(name)
    except Exception as error:
        failure = explain(error)
        if failure is None:
            raise
        measured = {"outcome": "refused", "reason": failure.message}
    return {**measured, "seconds": round(time.process_time() - started, 1)}


def _measure(name: str) -> dict[str, Any]:
    import torch

    from atopipe.ato.discovery.find import find_groups
    from atopipe.ato.search.budget import Budget
    from atopipe.ato.search.cost import flops, params
    from atopipe.ato.search.selection import reachable_minimum
    from atopipe.pipeline.engine.preflight import run_preflight
    from atopipe.pipeline.models.build import build_model

    torch.manual_seed(0)
    model, generator = build_model(name, CLASSES), torch.Generator().manual_seed(0)
    default = getattr(model, "default_cfg", {}).get("input_size") or (3, *2 * [SIZES.get(name, 224)])
    example = torch.zeros(1, *default)
    started = time.process_time()
    groups = find_groups(model, example, generator)
    seconds = time.process_time() - started
    cost, size = flops(model, groups, example), params(model, groups, example)
    minimum = reachable_minimum(groups, cost, "auto")
    found = {
        "input": list(default),
        "sets": len(groups.sets),
        "groups": groups.total,
        "whole": len(groups.unprunable),
        "reasons": sorted({_kind(width.reason) for width in groups.unprunable}),
        "flops": cost.dense,
        "params": size.dense,
        "minimum_flops": minimum,
        "minimum_params": reachable_minimum(groups, size, "auto"),
        "find_seconds": round(seconds, 2),
    }
    budget = Budget.of_dense(cost, 1 - (1 - minimum) / 2)
    preflight = run_preflight(model, groups, [budget], example, align="auto", generator=generator)
    outcome = "pass" if preflight.passed else "parity"
    compared = {"target": 1 - (1 - minimum) / 2, "ratio": preflight.ratios["flops"], "lossless": preflight.lossless}
    return {"outcome": outcome, **found, **compared, "parity": preflight.parity, "opset": preflight.opset}


def _kind(reason: str) -> str:
    """A reason without the names and numbers of one layer."""
    return re.sub(r"(?<!\w)'[^']*'", "...", reason).partition(" (")[0].partition(": removing")[0]


def run(wanted: Sequence[str]) -> None:
    """Measure what is wanted, or all that has no result yet; every result is written at once."""
    known = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {"models": {}}
    for name in wanted or [name for name in names() if name not in known["models"]]:
        known["models"][name] = _in_a_process(name)
        known = {"environment": _environment(), "models": dict(sorted(known["models"].items()))}
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")
        result = known["models"][name]
        print(name, result["outcome"], result.get("reason", ""), f"{result.get('seconds', 0)} s", flush=True)


def _in_a_process(name: str) -> dict[str, Any]:
    seconds = CPU_SECONDS["timm" if name.startswith("timm/") else "torchvision"]

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 5))

    command = [sys.executable, __file__, "one", name]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=WALL_SECONDS, preexec_fn=limit)
    except subprocess.TimeoutExpired:
        return {"outcome": "stopped", "reason": f"longer than {WALL_SECONDS} s"}
    if done.returncode == -signal.SIGXCPU:
        return {"outcome": "stopped", "reason": f"more than {seconds} s of processor time"}
    if done.returncode == -signal.SIGKILL:
        return {"outcome": "stopped", "reason": "killed by the system, probably out of memory"}
    if done.returncode:
        return {"outcome": "error", "reason": (done.stderr.strip().splitlines() or ["no message"])[-1]}
    result: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return result


def _environment() -> dict[str, Any]:
    from atopipe.pipeline.system.machine import hardware, library_versions

    machine = hardware()
    threads = os.environ.get("OMP_NUM_THREADS", "1")
    hardware_words = {"cpu": machine["cpu"], "cores": machine["cores"], "threads": threads, "python": machine["python"]}
    return {"command": "python benchmarks/zoo.py run", **hardware_words, "libraries": library_versions(LIBRARIES)}


def table() -> str:
    """docs/reference/models.md."""
    known = json.loads(RESULTS.read_text(encoding="utf-8"))
    models, environment = known["models"], known["environment"]
    parts = {
        "torchvision": {n: r for n, r in models.items() if not n.startswith("timm/")},
        "timm": {n: r for n, r in models.items() if n.startswith("timm/")},
    }
    libraries = ", ".join(f"{name} {version}" for name, version in environment["libraries"].items())
    parts = {name: part for name, part in parts.items() if part}
    counts = [f"{_passed(part)} of {len(part)} of {name}" for name, part in parts.items()]
    left = len(set(names()) - models.keys())
    about = (
        "What can be pruned of each architecture, with ten classes, random weights and the default input size. "
        "*Sets* are the widths that can be pruned, *fixed* those that cannot. *Reachable* is the smallest fraction of "
        "FLOPs and of parameters, with widths in steps of 4, 8 or 16. *Preflight* prunes at random half-way to that: "
        "the FLOPs it keeps, the difference in float64 after removal (*lossless*, at most 1e-10), and the difference "
        "between torch and ONNX Runtime (*parity*, at most 1e-04 of the logits' standard deviation). "
        "*Seconds* are processor time: for finding and verifying the groups, and in total."
    )
    where = (
        f"{' and '.join(counts)} complete the pipeline{f'; {left} are not measured yet' if left else ''}. "
        f"`{environment['command']}` on {environment['cores']} cores "
        f"of an {environment['cpu']}, {environment['threads']} thread, Python {environment['python']}, {libraries}. "
        f"Models of torchvision were stopped after {CPU_SECONDS['torchvision']} s of processor time, "
        f"those of timm after {CPU_SECONDS['timm']} s. This page is generated by "
        "[`benchmarks/zoo.py`](../../benchmarks/zoo.py)."
    )
    lines = ["# Models", "", about, "", where, ""]
    for name, part in parts.items():
        lines += [f"## {name}", "", *_rows(part), ""]
    return "\n".join(lines)


def _passed(part: dict[str, Any]) -> int:
    return sum(result["outcome"] == "pass" for result in part.values())


def _rows(part: dict[str, Any]) -> list[str]:
    heads = ("model", "sets", "fixed", "reachable FLOPs", "parameters", "preflight", "lossless", "parity", "seconds")
    rows = [f"| {' | '.join(heads)} |", f"|-|{'-:|' * (len(heads) - 1)}"]
    for name, result in part.items():
        short = name.removeprefix("timm/")
        if result["outcome"] in ("pass", "parity"):
            low = [f"{result['minimum_flops']:.3f}", f"{result['minimum_params']:.3f}", f"{result['ratio']:.3f}"]
            compared = [f"{result['lossless']:.0e}", f"{result['parity']:.0e}"]
            seconds = f"{result['find_seconds']:.1f}, {result['seconds']:.0f}"
            cells = [short, str(result["sets"]), str(result["whole"]), *low, *compared, seconds]
            rows.append(f"| {' | '.join(cells)} |")
        else:
            rows.append(f"| {short} | {result['outcome']}: {_plain(result['reason'])} |{' |' * 7}")
    return rows


def _plain(text: str) -> str:
    """A message in a cell of a table."""
    return text.replace("|", "/").replace("<", "(").replace(">", ")")


def main(arguments: Sequence[str]) -> None:
    """run [NAME ...], one NAME or table."""
    command, *rest = arguments or ["run"]
    if command == "one":
        print(json.dumps(measure(rest[0])))
    elif command == "table":
        PAGE.write_text(table(), encoding="utf-8")
    else:
        run(rest)


if __name__ == "__main__":
    main(sys.argv[1:])
