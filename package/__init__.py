"""Train and prune an image classifier in one run; the folders beside this one are its sub-packages."""

from typing import Any


def __getattr__(name: str) -> Any:
    """`__version__` is that of the installed distribution, looked up when it is asked for."""
    if name != "__version__":
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    from importlib.metadata import version

    return version(__name__)
