"""What `serve` and `demo` share: a server in a process of its own, with its signals and its log.

First SIGTERM drains, a second one, or SIGINT, ends now; the exit status is 0 after either. SIGHUP reloads.
"""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator, Callable, Mapping

import click
import trio

from ..config import Config
from ..logs import open_log
from ..server import Server, open_server
from .process import take_process


async def run_server(
    read: Callable[[], Config],
    *,
    environ: Mapping[str, str] | None = None,
    notice: str = "",
    demo: bool = False,
) -> None:
    """Serve by the configuration that `read` returns, until a signal; print where, once connections are accepted."""
    take_process()
    config = read()
    with open_log() as log, trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
        async with open_server(config, [log], environ=environ, notice=notice, demo=demo) as server:
            click.echo(f"listening on {server.url}")
            await _serve_until_signal(server, read, signals)


async def _serve_until_signal(server: Server, read: Callable[[], Config], signals: AsyncIterator[int]) -> None:
    while (number := await anext(signals)) == signal.SIGHUP:
        server.reload(read)
    if number == signal.SIGTERM:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_end_on_signal, signals, nursery.cancel_scope)
            await server.drain()
            nursery.cancel_scope.cancel()
    await server.drain(0)


async def _end_on_signal(signals: AsyncIterator[int], scope: trio.CancelScope) -> None:
    while await anext(signals) == signal.SIGHUP:
        pass  # it goes down; no new settings any more
    scope.cancel()
