"""What `serve` and `demo` share: a server in a process of its own, with its signals and its log.

First SIGTERM drains, a second one, or SIGINT, ends now; the exit status is 0 after either.
"""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator, Mapping

import click
import trio

from ..config import Config
from ..logs import open_log
from ..server import Server, open_server
from .process import take_process


async def run_server(config: Config, *, environ: Mapping[str, str] | None = None, notice: str = "") -> None:
    """Serve until a signal; print where, once connections are accepted."""
    take_process()
    with open_log() as log, trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with open_server(config, [log], environ=environ, notice=notice) as server:
            click.echo(f"listening on {server.url}")
            await _serve_until_signal(server, config, signals)


async def _serve_until_signal(server: Server, config: Config, signals: AsyncIterator[int]) -> None:
    if await anext(signals) == signal.SIGINT:
        return
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_end_on_signal, signals, nursery.cancel_scope)
        await server.drain(config.drain_timeout)
        nursery.cancel_scope.cancel()


async def _end_on_signal(signals: AsyncIterator[int], scope: trio.CancelScope) -> None:
    await anext(signals)
    scope.cancel()
