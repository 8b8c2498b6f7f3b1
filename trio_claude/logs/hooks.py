"""What others say on stderr becomes lines of the log: logging, warnings, and exceptions that nobody catches.

Only a program that is its own may do this: what was there before is back when the context is left. This module must
never take what a library says below level info: that may hold what a client says.
"""

from __future__ import annotations

import logging
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import PurePath
from typing import Any, Final, TextIO

LEAST: Final = logging.INFO
TEXT_LIMIT: Final = 2000
"""Characters of a message that are taken."""
Tell = Callable[[int, str, Mapping[str, object], BaseException | None], None]
"""Takes a level, a name, fields and the exception that there was."""


class _Handler(logging.Handler):
    def __init__(self, tell: Tell) -> None:
        super().__init__(LEAST)
        self._tell = tell

    def emit(self, record: logging.LogRecord) -> None:
        try:
            message = record.getMessage()
        except Exception as fault:  # its words do not fit its values: the fault of who logs, never of who writes
            said = record.msg if isinstance(record.msg, str) else type(record.msg).__name__
            message = f"{said} ({type(fault).__name__})"
        error = record.exc_info[1] if record.exc_info else None
        self._tell(record.levelno, "Logged", {"logger": record.name, "message": message[:TEXT_LIMIT]}, error)


@contextmanager
def taken(tell: Tell) -> Iterator[None]:
    """Have `tell` hear what else would be said on stderr, until the context is left."""
    root, handler = logging.getLogger(), _Handler(tell)
    before, level = list(root.handlers), root.level
    hooks = warnings.showwarning, threading.excepthook, sys.unraisablehook
    root.handlers[:] = [handler]
    root.setLevel(LEAST)
    warnings.showwarning = _warned(tell)
    threading.excepthook = lambda gone: _crashed(tell, f"thread {gone.thread and gone.thread.name}", gone.exc_value)
    sys.unraisablehook = lambda gone: _crashed(tell, "destructor or callback", gone.exc_value)
    try:
        yield
    finally:
        warnings.showwarning, threading.excepthook, sys.unraisablehook = hooks
        root.setLevel(level)
        root.handlers[:] = before


def _warned(tell: Tell) -> Callable[..., None]:
    def show(
        message: Warning | str, category: type[Warning], filename: str, lineno: int,
        _file: TextIO | None = None, _line: str | None = None,
    ) -> None:  # fmt: skip
        facts: dict[str, Any] = {"category": category.__name__, "message": str(message)[:TEXT_LIMIT]}
        tell(logging.WARNING, "Warned", {**facts, "file": PurePath(filename).name, "line": lineno}, None)

    return show


def _crashed(tell: Tell, where: str, error: BaseException | None) -> None:
    if error is not None:
        tell(logging.ERROR, "Crashed", {"where": where}, error)
