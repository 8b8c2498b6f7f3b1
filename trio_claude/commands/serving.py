"""What `serve` and `demo` share: a server in a process of its own, with its signals and its log.

First SIGTERM drains, a second one, or SIGINT, ends now; the exit status is 0 after either.
"""

from __future__ import annotations

import contextlib
import ctypes
import resource
import signal
import sys
from collections.abc import AsyncIterator, Mapping

import click
import trio

from ..config import Config
from ..logs import open_log
from ..server import Server, open_server

PR_SET_DUMPABLE = 4


async def run_server(config: Config, *, environ: Mapping[str, str] | None = None, notice: str = "") -> None:
    """Serve until a signal; print where, once connections are accepted."""
    take_process()
    with open_log() as log, trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with open_server(config, [log], environ=environ, notice=notice) as server:
            click.echo(f"listening on {server.url}")
            await _serve_until_signal(server, config, signals)


def take_process() -> None:
    """Prepare this process for runs: it is ours alone."""
    _raise_descriptor_limit()
    _hide_memory()


def _raise_descriptor_limit() -> None:
    """Take as many descriptors as the system gives us; the process is ours."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _hide_memory() -> None:
    """Keep processes of the same user, a run's among them, from reading this one's memory, environment and files."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)


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
