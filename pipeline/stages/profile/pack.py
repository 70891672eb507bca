"""A pack of weightless networks of random widths: what a device has to time for its latency table.

The folder holds dense.onnx and some fifty others of 10 to 60 kB, pack.json, which says what they are, and probe.py,
which times them without torch.
"""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from atopipe.pipeline.system.files import sha256_file, sha256_json, write_bytes, write_json

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from atopipe.ato.groups import Groups
    from atopipe.ato.recipe import Align
    from atopipe.pipeline.engine.workspace import Workspace

FORMAT = 1
NETWORKS = 52  # 40 to fit and 12 to try the fit on
DENSE = "000.onnx"
NARROWEST_SHARE = 0.1


@dataclass(frozen=True, eq=False)
class Architecture:
    """A network whose every structure can be written without its weights: the dense graph, and how widths cut it."""

    model: "nn.Module"
    groups: "Groups"
    dense: Path

    def without_weights(self, widths: "Tensor") -> bytes:
        """The ONNX file of the network at the widths [sets], without weights."""
        from atopipe.export.weightless import weightless

        return weightless(self.dense, self.shapes(widths))

    def shapes(self, widths: "Tensor") -> Mapping[str, tuple[int, ...]]:
        """Shape of each parameter at the widths [sets]: which groups are kept does not matter, only how many."""
        import torch

        from atopipe.ato.removal.structure import cut_tensors, structure_of

        pairs = zip(self.groups.sizes, widths.tolist(), strict=True)
        mask = torch.cat([(torch.arange(size) < width).float() for size, width in pairs])
        shapes = {name: list(tensor.shape) for name, tensor in self.model.state_dict().items()}
        for name, cut in cut_tensors(self.model, structure_of(self.model, self.groups, mask)).items():
            for dim, index in cut.items():
                shapes[name][dim] = len(index)
        return {name: tuple(shape) for name, shape in shapes.items()}


def make_pack(workspace: "Workspace", folder: Path) -> dict[str, Any]:
    """The pack of the network that a run would train; the same whatever the run's seed and weights."""
    import torch

    from atopipe.ato.discovery.invariance import random_network
    from atopipe.export.onnx import export_onnx

    model = workspace.new_model()
    groups, generator = workspace.groups(model), torch.Generator().manual_seed(0)
    with TemporaryDirectory() as scratch:
        exported = Path(scratch) / "dense.onnx"
        export_onnx(random_network(model, generator).float(), workspace.example, exported, metadata={})
        network = Architecture(model, groups, exported)
        return write_pack(folder, network, workspace.example, align=workspace.config.recipe.align, generator=generator)


def write_pack(
    folder: Path, network: Architecture, example: "Tensor", *, align: "Align", generator: "torch.Generator"
) -> dict[str, Any]:
    """Fills the folder, and returns what pack.json says; its digest covers every file."""
    import torch

    from atopipe.export.weightless import layer_names

    entries = []
    for number in range(NETWORKS):
        dense = torch.tensor(network.groups.sizes, dtype=torch.float64)
        widths = random_widths(network.groups, align, generator) if number else dense
        path = folder / f"{number:03}.onnx"
        write_bytes(path, network.without_weights(widths))
        entries.append({"file": path.name, "sha256": sha256_file(path), "widths": [int(width) for width in widths]})
    pack: dict[str, Any] = {
        "format": FORMAT,
        "input": list(example.shape[1:]),
        "sets": {item.name: item.size for item in network.groups.sets},
        "layers": layer_names(network.dense),
        "networks": entries,
    }
    pack["digest"] = sha256_json(pack)
    write_json(folder / "pack.json", pack)
    shutil.copyfile(Path(__file__).with_name("probe.py"), folder / "probe.py")
    return pack


def random_widths(groups: "Groups", align: "Align", generator: "torch.Generator") -> "Tensor":
    """Widths [sets] in whole steps, float64: from a random band of shares of the dense ones, at random within it.

    A band for each network, so that networks differ as wholes too, not only around one size.
    """
    import torch

    from atopipe.ato.search.selection import narrowest_widths

    sizes, steps = torch.tensor(groups.sizes, dtype=torch.float64), narrowest_widths(groups, align)
    low, high = torch.rand(2, generator=generator, dtype=torch.float64).sort().values
    low, high = NARROWEST_SHARE + (1 - NARROWEST_SHARE) * low, NARROWEST_SHARE + (1 - NARROWEST_SHARE) * high
    shares = low + (high - low) * torch.rand(len(sizes), generator=generator, dtype=torch.float64)
    widths: Tensor = ((shares * sizes / steps).round() * steps).clamp(min=steps, max=sizes)
    return widths
