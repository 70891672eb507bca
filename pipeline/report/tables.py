"""Tables in plain characters, for logs and files: rich lays them out, nothing is wrapped or cut off."""

import io
from collections.abc import Sequence
from typing import Literal

Side = Literal["left", "right"]
WIDEST = 100_000  # characters of a line


def aligned(rows: Sequence[Sequence[str]], sides: Sequence[Side] = ("left", "right", "right", "right")) -> str:
    """The rows as lines, each column as wide as its longest cell and set to its side."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for side in sides:
        table.add_column(justify=side, no_wrap=True)
    for row in rows:
        table.add_row(*map(Text, row))
    text = io.StringIO()
    Console(file=text, width=WIDEST).print(table)
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines())
