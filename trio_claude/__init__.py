"""The Claude command line behind a WebSocket, with proof that nothing of a run is left behind.

Names are loaded when they are first used, so that importing the package costs nothing. Importing it, or running a
server inside another program, touches no global logging, signals or environment.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .client import Answer, Ended, ask
    from .config import Config
    from .embed import OpenRun, open_run
    from .engine import Engine, open_engine
    from .errors import BadMessage, Busy, ConfigError, Reason, SessionBusy, TrioClaudeError
    from .events import Event, Observer, Outcome, Receipt
    from .metrics import Metrics
    from .server import Server, open_server, serve

__version__ = "0.1.0"
__all__ = [
    "Answer",
    "BadMessage",
    "Busy",
    "Config",
    "ConfigError",
    "Ended",
    "Engine",
    "Event",
    "Metrics",
    "Observer",
    "OpenRun",
    "Outcome",
    "Reason",
    "Receipt",
    "Server",
    "SessionBusy",
    "TrioClaudeError",
    "__version__",
    "ask",
    "open_engine",
    "open_run",
    "open_server",
    "serve",
]

_HOMES = {
    "Answer": "client",
    "BadMessage": "errors",
    "Busy": "errors",
    "Config": "config",
    "ConfigError": "errors",
    "Ended": "client",
    "Engine": "engine",
    "Event": "events",
    "Metrics": "metrics",
    "Observer": "events",
    "OpenRun": "embed",
    "Outcome": "events",
    "Reason": "errors",
    "Receipt": "events",
    "Server": "server",
    "SessionBusy": "errors",
    "TrioClaudeError": "errors",
    "ask": "client",
    "open_engine": "engine",
    "open_run": "embed",
    "open_server": "server",
    "serve": "server",
}


def __getattr__(name: str) -> Any:
    """Load a public name from its module."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    value = getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = value
    return value
