"""A pack of weightless networks of random widths: what a device has to time for its latency table.

The folder holds networks.zip, pack.json, which says what is in it, probe.py, which times it without torch, and the
dense network for the measurements that follow.
"""

import io
import shutil
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from atopipe.pipeline.system.files import sha256_bytes, sha256_json, write_bytes, write_json

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from atopipe.ato.groups import Groups
    from atopipe.ato.search.selection import Align
    from atopipe.pipeline.engine.workspace import Workspace

FORMAT, ARCHIVE = 2, "networks.zip"  # as probe.py has them
DENSE = "dense.onnx"
FITTED, HELD_OUT = 40, 12  # networks of random widths: to fit a cost to, and to try the fit on
FEWER = (1, 2, 4, 8)  # channels that every width of a further network has less than the dense one: where cliffs are
NARROWEST_SHARE = 0.1
FIT, TRY, CLIFF = "fit", "held-out", "cliff"  # what a network is for


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
    from atopipe.export.weightless import layer_names

    entries, content = [], io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for number, (role, widths) in enumerate(_structures(network.groups, align, generator)):
            model = network.without_weights(widths)
            file = f"{number:03}.onnx"
            archive.writestr(zipfile.ZipInfo(file), model, zipfile.ZIP_DEFLATED)
            kept = [int(width) for width in widths]
            entries.append({"file": file, "for": role, "widths": kept, "sha256": sha256_bytes(model)})
            if number == 0:
                write_bytes(folder / DENSE, model)
    write_bytes(folder / ARCHIVE, content.getvalue())
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


def _structures(groups: "Groups", align: "Align", generator: "torch.Generator") -> "Iterator[tuple[str, Tensor]]":
    """What each network is for, and its widths [sets]; the dense one first, then the narrowest: all lie between."""
    import torch

    from atopipe.ato.search.selection import narrowest_widths

    dense = torch.tensor(groups.sizes, dtype=torch.float64)
    yield FIT, dense
    yield FIT, narrowest_widths(groups, align)
    for number in range(2, FITTED + HELD_OUT):
        yield FIT if number < FITTED else TRY, random_widths(groups, align, generator)
    for fewer in FEWER:
        groups_fewer = [max(1, fewer // s.channels_per_group) for s in groups.sets]
        yield CLIFF, (dense - torch.tensor(groups_fewer, dtype=torch.float64)).clamp(min=1)


def random_widths(groups: "Groups", align: "Align", generator: "torch.Generator") -> "Tensor":
    """Widths [sets] in whole steps, float64: from a random band of shares of the dense ones, at random within it.

    A band for each network, so that networks differ as wholes too, not only around one size. In fine steps: what is
    efficient on the device follows from the measurement.
    """
    import torch

    from atopipe.ato.search.selection import narrowest_widths

    sizes, steps = torch.tensor(groups.sizes, dtype=torch.float64), narrowest_widths(groups, align)
    low, high = torch.rand(2, generator=generator, dtype=torch.float64).sort().values
    low, high = NARROWEST_SHARE + (1 - NARROWEST_SHARE) * low, NARROWEST_SHARE + (1 - NARROWEST_SHARE) * high
    shares = low + (high - low) * torch.rand(len(sizes), generator=generator, dtype=torch.float64)
    widths: Tensor = ((shares * sizes / steps).round() * steps).clamp(min=steps, max=sizes)
    return widths
