"""What `serve` and `demo` share: a server in a process of its own, with its signals, its log and its service manager.

First SIGTERM drains, a second one, or SIGINT, ends now; the exit status is 0 after either. SIGHUP reloads. The manager
is told of each, and hears that the loop lives. A demonstration has no settings to read anew: its SIGHUP means that its
terminal was closed, and ends it now, unless it was started to outlive that.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Final

import trio

from ..config import Config
from ..events import Weak
from ..logs import Log, open_log
from ..server import Server, open_server
from ..services import open_services
from .complaints import takes_colours, tell
from .manager import Manager, take_manager
from .process import reap_orphans, take_process
from .settings import SHOWN, strange_variables
from .signals import SERVERS, let_signals

INIT: Final = 1
"""The process to which the kernel gives the orphans of its container."""


async def run_server(
    read: Callable[[], Config],
    *,
    environ: Mapping[str, str] | None = None,
    notice: str = "",
    demo: bool = False,
) -> None:
    """Serve by the configuration that `read` returns, until a signal; print where, once connections are accepted."""
    take_process()
    reloads = not demo or signal.getsignal(signal.SIGHUP) is signal.SIG_IGN  # as nohup starts it
    config = read()
    manager = take_manager(os.environ)
    with (
        open_log(config, colours=takes_colours(sys.stderr)) as log,
        trio.open_signal_receiver(*SERVERS) as signals,
    ):
        let_signals()
        for name in strange_variables(os.environ):
            log(Weak(f"{name[:SHOWN]}: no such setting, so it is not read"))
        async with open_services() as watchers:
            with trio.CancelScope() as leaving:
                async with (
                    open_services() as services,
                    open_server(
                        config, [log], environ=environ, notice=notice, demo=demo, listeners=manager.sockets or None
                    ) as server,
                ):
                    if os.getpid() == INIT:
                        services.start_soon(reap_orphans)
                    if manager.watchdog:
                        services.start_soon(_show_life, manager)
                    manager.tell("READY=1", f"STATUS=listening on {server.url}")
                    services.start_soon(_announce, f"listening on {server.url}")
                    await _serve_until_signal(server, read if reloads else None, signals, manager, log)
                    watchers.start_soon(_hurry, signals, leaving)


async def _announce(text: str) -> None:
    """Say something on stdout once there is room for it: where that is a full pipe, whoever serves waits for nobody."""
    with contextlib.suppress(OSError, ValueError, AttributeError):  # what never waits, as a file, or is closed
        await trio.lowlevel.wait_writable(sys.stdout.fileno())
    tell(text, err=False)


async def _show_life(manager: Manager) -> None:
    """Tell the manager that the loop goes round; where that stops, its SIGABRT shows in the log where it hangs."""
    faulthandler.enable()
    while True:
        manager.tell("WATCHDOG=1")
        await trio.sleep(manager.watchdog / 2)


async def _serve_until_signal(
    server: Server, read: Callable[[], Config] | None, signals: AsyncIterator[int], manager: Manager, log: Log
) -> None:
    while (number := await anext(signals)) == signal.SIGHUP and read:
        manager.tell_reloading()
        server.reload(read)
        log.configure(server.config)
        manager.tell("READY=1")
    manager.tell("STOPPING=1", f"STATUS=draining; {server.runs.statistics().live} runs go on")
    if number == signal.SIGTERM:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_end_on_signal, signals, nursery.cancel_scope)
            await server.drain()
            nursery.cancel_scope.cancel()
    await server.drain(0)


async def _hurry(signals: AsyncIterator[int], leaving: trio.CancelScope) -> None:
    """Take signals to the end: one more waits for no client; Trio would raise anew what nobody has taken."""
    async for number in signals:
        if number != signal.SIGHUP:
            leaving.cancel()


async def _end_on_signal(signals: AsyncIterator[int], scope: trio.CancelScope) -> None:
    while await anext(signals) == signal.SIGHUP:
        pass  # it goes down; no new settings any more
    scope.cancel()
