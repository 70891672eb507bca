"""Remove the masked groups, and prove in float64 that nothing else changed.

Leaves structure.json (model name, arguments, kept indices) and weights.safetensors of the small network.
"""

import json

from atopipe.pipeline.engine.networks import load_groups, load_mask, load_trained
from atopipe.pipeline.engine.stage import Context, Stage
from atopipe.pipeline.engine.workspace import Stream
from atopipe.pipeline.models.inference import save_tensors
from atopipe.pipeline.system.files import write_json

PROOF_IMAGES = 16


def run(context: Context) -> dict[str, float]:
    from atopipe.ato.groups import Groups
    from atopipe.ato.removal.shrink import prove_lossless, shrink
    from atopipe.ato.search.cost import flops, params

    workspace, model = context.workspace, load_trained(context)
    groups = load_groups(context)
    groups.require_fit(model)
    mask = load_mask(context, groups)
    small, structure = shrink(model, groups, mask)
    images, generator = workspace.images(PROOF_IMAGES), workspace.generator(Stream.PROOF)
    proof = prove_lossless(model, groups, mask, small, images, generator)

    settings = context.config.model
    described = {"model": settings.name, "args": settings.args, "classes": len(workspace.data.labels)}
    write_json(context.folder / "structure.json", {**described, **json.loads(structure.to_json())})
    save_tensors(context.folder / "weights.safetensors", small.state_dict())

    whole = Groups((), ())  # nothing to remove: the counts are of each network as it stands
    counts = {
        "flops.dense": flops(model, whole, workspace.example).dense,
        "flops.shrunk": flops(small, whole, workspace.example).dense,
        "params.dense": params(model, whole, workspace.example).dense,
        "params.shrunk": params(small, whole, workspace.example).dense,
    }
    return {
        **counts,
        "flops.ratio": counts["flops.shrunk"] / counts["flops.dense"],
        "params.ratio": counts["params.shrunk"] / counts["params.dense"],
        "lossless.max_rel_diff": proof.max_rel_diff,
    }


STAGE = Stage(
    name="shrink",
    run=run,
    inputs=("train",),
    settings=("model", "data", "seed"),
    libraries=("torch", "torchvision", "torch-pruning"),
)
