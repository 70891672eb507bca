"""Text for people: errors in a line, names nobody knows, numbers, and whatever came from outside."""

import difflib
import html
from collections.abc import Iterable, Mapping
from typing import Any


def first_line(error: BaseException) -> str:
    """The first line of an error's message that is not empty; its kind where there is none."""
    return next(filter(str.strip, str(error).splitlines()), type(error).__name__).strip()


def printable(text: str) -> str:
    """The text on one line of any terminal or file: what moves a cursor, hides or cannot be encoded, as an escape."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def in_markdown(text: str) -> str:
    """The same, with nothing in it that Markdown takes for HTML or for the end of a table's cell."""
    return html.escape(printable(text), quote=False).replace("|", "\\|")


def reason(error: BaseException) -> str:
    """Kind and first line of what user code raised."""
    if isinstance(error, SystemExit):
        return f"it ended the program with sys.exit({'' if error.code is None else error.code})"
    kind, line = type(error).__name__, first_line(error)
    return kind if line == kind else f"{kind}: {line}"


def written(args: Mapping[str, object]) -> str:
    """The arguments of a call, for a message."""
    return ", ".join(f"{key}={value!r}" for key, value in args.items()) or "no arguments"


def did_you_mean(name: str, known: Iterable[str]) -> str | None:
    """`did you mean a, b or c?` with at most three known names, nearest first; None where nothing is near."""
    spelt = {candidate.lower(): candidate for candidate in sorted(known)}
    close = [spelt[match] for match in difflib.get_close_matches(name.lower(), spelt, n=3, cutoff=0.6)]
    if not close:
        return None
    return f"did you mean {' or '.join(filter(None, (', '.join(close[:-1]), close[-1])))}?"


def nearest_or_all(name: str, known: Iterable[str]) -> str:
    """The nearest of a few known names or, where nothing is near, all of them."""
    return did_you_mean(name, known) or f"choose one of {', '.join(sorted(known))}"


def needed_runtime(structure: Mapping[str, Any]) -> str:
    """Which ONNX Runtime loads a file, from what was read back from it."""
    if structure["runtime"]:
        return f"loads in ONNX Runtime {structure['runtime']} and newer"
    return "needs an ONNX Runtime newer than those whose versions are known"


def milliseconds(value: float) -> str:
    return f"{value:.3g} ms"


def scaled(value: float) -> str:
    """Three significant digits with a metric prefix."""
    for factor, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= factor:
            return f"{value / factor:.3g} {prefix}"
    return f"{value:.3g}"


def duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s" if minutes else f"{seconds:.1f} s"
