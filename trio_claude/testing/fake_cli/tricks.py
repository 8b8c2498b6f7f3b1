"""Perform the directives that no model could: what a CLI that is broken, or hostile, does.

Rule: what one of these starts or fills has a bound.
"""

from __future__ import annotations

import os
import signal
import time

from ..model import Directive, DirectiveError
from .tree import KINDS, plant
from .wire import LIFE_SECONDS, Ended, Interrupted, write_all, write_line, write_stderr

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from .session import Session

BATCH_BYTES = 64 * 2**10
TREE_SECONDS = 300


def _lines(session: Session, directive: Directive) -> None:
    count, size, rate = directive.get("n", int, 1), directive.get("size", int, 0), directive.seconds("rate", 0)
    stamped = directive.get("stamp", bool, False)
    started, said = time.monotonic(), 0
    while said < count:
        due = 1 + int((time.monotonic() - started) * rate) if rate else count
        last = min(due, count, said + max(1, BATCH_BYTES // max(size, 40)))
        write_all(b"".join(_numbered(number, size, stamped=stamped) for number in range(said + 1, last + 1)))
        said = max(said, last)
        session.wire.wait(max(0.0, started + said / rate - time.monotonic()) if rate and said < count else 0.0)


def _numbered(number: int, size: int, *, stamped: bool) -> bytes:
    stamp = b'"t":%d,' % time.monotonic_ns() if stamped else b""
    head = b'{"type":"fake","n":%d,%b"pad":"' % (number, stamp)
    return head + b"x" * (size - len(head) - 2) + b'"}\n'


def _stderr(_session: Session, directive: Directive) -> None:
    line = directive.get("text", str, "fake stderr")
    write_stderr("\n".join([line] * directive.get("n", int, 1)))


def _exit(_session: Session, directive: Directive) -> None:
    raise Ended(directive.get("status", int, 0))


def _signal(_session: Session, directive: Directive) -> None:
    import resource

    number = directive.get("n", int)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if number not in (signal.SIGKILL, signal.SIGSTOP):
        signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)


def _silent(session: Session, _directive: Directive) -> None:
    """Stay, deaf to everything but signals; even their usual last words are not said."""
    session.wire.deaf = True
    try:
        session.wire.wait(LIFE_SECONDS)
    except Interrupted:
        raise Ended(0) from None


def _raw(_session: Session, directive: Directive) -> None:
    if "hex" in directive.fields:
        write_all(bytes.fromhex(directive.get("hex", str)))
    else:
        write_all(directive.get("text", str).encode("utf-8", "backslashreplace"))


def _nonewline(session: Session, directive: Directive) -> None:
    left = directive.get("bytes", int, 10_000_000)
    while left > 0:
        write_all(b"x" * min(left, BATCH_BYTES))
        left -= BATCH_BYTES
        session.wire.wait(0)


def _closeout(session: Session, directive: Directive) -> None:
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)  # not closed: the next file opened would become stdout
    os.close(null)
    _silent(session, directive)


def _linger(session: Session, directive: Directive) -> None:
    session.lingering = directive.seconds("seconds", 10)


def _tree(session: Session, directive: Directive) -> None:
    kinds, seconds = directive.get("kinds", list, ["plain"]), int(directive.seconds("seconds", 60))
    if unknown := [kind for kind in kinds if kind not in KINDS]:
        raise DirectiveError(f"unknown kinds {unknown!r:.80}")
    by_kind = {kind: plant(kind, max(1, min(seconds, TREE_SECONDS))) for kind in kinds}
    write_line({"type": "fake", "pids": [pid for pids in by_kind.values() for pid in pids], "by_kind": by_kind})
    if directive.fields.get("then") == "exit":
        raise Ended(0)
    if directive.fields.get("then") == "stay":
        _silent(session, directive)


TRICKS: dict[str, Callable[[Session, Directive], None]] = {
    "lines": _lines, "stderr": _stderr, "exit": _exit, "signal": _signal, "silent": _silent, "raw": _raw,
    "nonewline": _nonewline, "closeout": _closeout, "linger": _linger, "tree": _tree,
}  # fmt: skip
