"""`from atopipe.pipeline import run, load_config`: the Python entrance, loaded on first use."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from atopipe.pipeline.api import Outcome, Selection, load_shrunk, run, verify
    from atopipe.pipeline.config.load import load_config

__all__ = ["Outcome", "Selection", "load_config", "load_shrunk", "run", "verify"]


def __getattr__(name: str) -> Any:
    """`atopipe --help` needs none of them: pydantic and what the stages import wait until then (PEP 562)."""
    if name not in __all__:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    home = "config.load" if name == "load_config" else "api"
    return getattr(import_module(f"{__name__}.{home}"), name)
