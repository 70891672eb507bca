"""What a person sees during a run: a live bar on a terminal, plain lines elsewhere, or nothing.

rich is imported on first use: `atopipe --help` does without it.
"""

import os
import sys
from typing import TYPE_CHECKING, Any, TextIO

from atopipe.pipeline.config.settings import COST_NAMES
from atopipe.pipeline.report.summary import Summary
from atopipe.pipeline.system.text import printable

if TYPE_CHECKING:
    from rich.progress import Progress as Bar
    from rich.progress import TaskID

    from atopipe.ato.training.loop import EpochRecord, Progress


SAID_EVERY = 20  # seconds, in lines of a log


class QuietDisplay:
    """Shows nothing."""

    def say(self, line: str) -> None:
        """An announcement of one line."""

    def begin(self, stage: str) -> None:
        """A stage starts."""

    def loading(self, done: int, total: int) -> None:
        """So many images of the data set are decoded."""

    def searching(self, found: int, seconds: float) -> None:
        """The search for what can be pruned goes on: so many widths are found after so many seconds."""

    def progress(self, progress: "Progress") -> None:
        """One training step is done."""

    def epoch(self, record: "EpochRecord") -> None:
        """One epoch is done."""

    def closing(self, summary: Summary) -> None:
        """The table at the end of a run."""

    def stop(self) -> None:
        """A stage is over, however it ended: nothing moves on the screen any more."""


class PlainDisplay(QuietDisplay):
    """Lines without colour or movement, one per epoch: for logs and build servers."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.said_at = 0.0

    def searching(self, found: int, seconds: float) -> None:
        if seconds >= self.said_at + SAID_EVERY:
            self.said_at = seconds
            self.say(f"groups  {found} widths are proven after {seconds:.0f} s: still searching")

    def say(self, line: str) -> None:
        try:
            print(_plain(line), file=self.stream, flush=True)
        except BrokenPipeError:  # whoever read the lines has gone; the run is wanted all the same
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.stream.fileno())

    def epoch(self, record: "EpochRecord") -> None:
        self.say(epoch_line(record))

    def closing(self, summary: Summary) -> None:
        self.say(f"\n{summary.as_text()}")


class LiveDisplay(QuietDisplay):
    """A progress bar over the whole training with the time left, and a closing table in restrained colour."""

    def __init__(self, stream: TextIO) -> None:
        from rich.console import Console

        self.console = Console(file=stream, highlight=False)
        self.bar: Bar | None = None
        self.task: TaskID | None = None
        self.fields = {"val": "-"}

    def say(self, line: str) -> None:
        self.console.print(_plain(line), markup=False, soft_wrap=True)

    def begin(self, stage: str) -> None:
        self._move(0, None, stage)

    def loading(self, done: int, total: int) -> None:
        self._move(done, total, f"images decoded: {done:,} of {total:,}")

    def searching(self, found: int, seconds: float) -> None:
        self._move(0, None, f"{found} widths are proven: searching")

    def progress(self, progress: "Progress") -> None:
        state = f"epoch {progress.epoch}/{progress.epochs}  {progress.phase:<6}  loss {progress.loss:.3f}"
        state += "".join(f"  {name} {value}" for name, value in self.fields.items())
        self._move(progress.step, progress.steps, state)

    def epoch(self, record: "EpochRecord") -> None:
        kept = {f"{COST_NAMES[cost]} kept": f"{fraction:.3f}" for cost, fraction in record.kept.items()}
        self.fields = {"val": f"{record.val_accuracy:.3f}", **kept}

    def closing(self, summary: Summary) -> None:
        self.console.print()
        self.console.print(closing_table(summary))
        for line in summary.notes():
            self.say(line)

    def _move(self, done: int, total: int | None, state: str) -> None:
        if self.bar is None:
            self.bar = _new_bar(self.console)
            self.task = self.bar.add_task("", total=total, state=state)
            self.bar.start()
        if self.task is not None:
            self.bar.update(self.task, completed=done, total=total, state=state)

    def stop(self) -> None:
        if self.bar is not None:
            self.bar.stop()
        self.bar = self.task = None


Display = QuietDisplay


def open_display(*, quiet: bool, as_json: bool) -> Display:
    """The display that fits where the output goes; it leaves standard output alone where that gets JSON."""
    if quiet:
        return QuietDisplay()
    stream = sys.stderr if as_json else sys.stdout
    return LiveDisplay(stream) if stream.isatty() and not os.environ.get("CI") else PlainDisplay(stream)


def epoch_line(record: "EpochRecord") -> str:
    """One epoch in one line."""
    kept = "".join(f"{COST_NAMES[cost]} kept {fraction:.4f}  " for cost, fraction in record.kept.items())
    return (
        f"epoch {record.epoch:>3}/{record.epochs}  {record.phase:<6}  loss {record.loss:.4f}  "
        f"accuracy train {record.train_accuracy:.4f} val {record.val_accuracy:.4f}  "
        f"{kept}{record.seconds:.1f} s"
    )


def closing_table(summary: Summary) -> Any:
    """The rows of the summary as a rich table."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    title = f"{printable(summary.title)}\n{summary.cost}"
    table = Table(box=box.SIMPLE_HEAD, title=Text(title, "bold"), title_justify="left")
    table.add_column("")
    for heading in ("dense", "shrunk", "shrunk / dense"):
        table.add_column(heading, justify="right")
    for row in summary.rows:
        table.add_row(Text(row.name), Text(row.dense, "dim"), Text(row.shrunk, "bold"), Text(row.ratio))
    table.add_section()
    for verdict in summary.verdicts:
        style = {"pass": "green", "fail": "bold red"}.get(verdict.outcome, "yellow")
        table.add_row(Text(verdict.name), "", Text(verdict.outcome, style), Text(printable(verdict.detail), "dim"))
    return table


def _plain(text: str) -> str:
    """The text in its own lines, and nothing else in it that moves the cursor."""
    return "\n".join(map(printable, text.split("\n")))


def _new_bar(console: Any) -> "Bar":
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    columns = (
        BarColumn(bar_width=24),
        TaskProgressColumn(),
        TextColumn("{task.fields[state]}", markup=False),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=console, transient=True)
