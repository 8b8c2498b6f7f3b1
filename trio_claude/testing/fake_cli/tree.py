"""Start processes that do not want to be found, for who must find them.

Rule: each ends by its own clock, whatever happens to who asked for it, so that a broken test leaves nothing for ever.
"""

from __future__ import annotations

import os
import signal
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

KINDS: dict[str, tuple[str, ...]] = {
    "plain": (),
    "setsid": ("setsid",),
    "double_fork": ("setsid", "fork"),
    "ignore_term": ("deaf",),
    "env_clear": ("setsid", "fork", "deaf", "scrub"),
    "stopped": ("deaf", "keep"),
    "hold_stdout": ("setsid", "fork", "hold"),
    "comet": ("setsid", "deaf", "comet"),
}


def plant(kind: str, seconds: int) -> list[int]:
    """Start one of the kinds above and return its pids, once it is what it is meant to be."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        _live(KINDS[kind], seconds, writer)
    os.close(writer)
    with open(reader, "rb") as said:
        pids = said.read().split()
    if "fork" in KINDS[kind] or kind == "comet":
        os.waitpid(child, 0)
    return [int(pid) for pid in pids]


def _live(traits: tuple[str, ...], seconds: int, ready: int) -> NoReturn:
    """Be such a process; closing `ready` says that it has become one."""
    try:
        _reset_signals("deaf" in traits)
        if "setsid" in traits:
            os.setsid()
        if "fork" in traits and os.fork():
            os._exit(0)
        _drop_standard_streams((0, 2) if "hold" in traits else (0, 1, 2))
        signal.alarm(seconds)
        if "comet" in traits:
            _fly(seconds, ready)
        if "keep" in traits:
            _keep_stopped(seconds, ready)
        os.write(ready, b"%d " % os.getpid())
        if "scrub" in traits:
            os.execvpe("sleep", ["sleep", str(seconds)], {})
        os.close(ready)
        while True:
            signal.pause()
    finally:
        os._exit(1)


def _reset_signals(deaf: bool) -> None:
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN if deaf else signal.SIG_DFL)
    for number in (signal.SIGALRM, signal.SIGCHLD):
        signal.signal(number, signal.SIG_DFL)


def _drop_standard_streams(fds: tuple[int, ...]) -> None:
    null = os.open(os.devnull, os.O_RDWR)
    for fd in fds:
        os.dup2(null, fd)
    os.close(null)


def _fly(seconds: int, ready: int) -> NoReturn:
    os.close(ready)
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and not os.fork():
        os.setsid()
        time.sleep(0.001)
    os._exit(0)


def _keep_stopped(seconds: int, ready: int) -> NoReturn:
    """Hold a stopped child, which no alarm could end, and end it in time."""
    child = os.fork()
    if not child:
        os.close(ready)
        os.kill(os.getpid(), signal.SIGSTOP)
        os._exit(0)
    os.waitpid(child, os.WUNTRACED)
    os.write(ready, b"%d %d " % (child, os.getpid()))
    os.close(ready)
    signal.alarm(0)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    os._exit(0)
