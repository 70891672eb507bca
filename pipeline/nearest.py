"""What to suggest for a name nobody knows."""

import difflib
from collections.abc import Iterable


def did_you_mean(name: str, known: Iterable[str]) -> str | None:
    """`did you mean a, b or c?` with at most three known names, nearest first; None where nothing is near."""
    close = difflib.get_close_matches(name.lower(), sorted(known), n=3, cutoff=0.6)
    if not close:
        return None
    return f"did you mean {' or '.join(filter(None, (', '.join(close[:-1]), close[-1])))}?"


def nearest_or_all(name: str, known: Iterable[str]) -> str:
    """The nearest of a few known names or, where nothing is near, all of them."""
    return did_you_mean(name, known) or f"choose one of {', '.join(sorted(known))}"
