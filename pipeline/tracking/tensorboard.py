"""TensorBoard: the folder `tensorboard/` of a run, rewritten by each process that mirrors it."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

FOLDER = "tensorboard"


class TensorBoard:
    """Scalars `train/loss` by epoch and `metrics/flops.ratio`; the settings as a text."""

    def __init__(self, folder: Path) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        self.writer = SummaryWriter(str(folder))

    def parameters(self, values: Mapping[str, str]) -> None:
        rows = [f"| {name} | {value} |" for name, value in values.items()]
        self.writer.add_text("settings", "\n".join(["| setting | value |", "|-|-|", *rows]))

    def epoch(self, stage: str, epoch: int, values: Mapping[str, float], seconds: float) -> None:
        for name, value in values.items():
            self.writer.add_scalar(f"{stage}/{name}", value, epoch, walltime=seconds)
        self.writer.flush()

    def metrics(self, values: Mapping[str, float], seconds: float) -> None:
        for name, value in values.items():
            self.writer.add_scalar(f"metrics/{name}", value, walltime=seconds)

    def close(self, outcome: str, files: Sequence[Path]) -> None:
        """TensorBoard keeps no files: their names and the outcome become a text."""
        self.writer.add_text("outcome", f"{outcome}; in {files[0].parent}: {', '.join(file.name for file in files)}")
        self.writer.close()


def open_tracker(root: Path, *, force: bool) -> TensorBoard:
    """A fresh folder: events.jsonl fills it."""
    return TensorBoard(root / FOLDER)
