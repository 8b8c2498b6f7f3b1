"""Serve the stub as a program until SIGTERM or SIGINT.

Rule: nothing but the command line stands here.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence

import trio

from .stub import open_messages_api

LAST_PORT = 65535


async def _run(port: int) -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with open_messages_api(port) as api:
            sys.stdout.write(f"listening on {api.url}\n")
            sys.stdout.flush()
            await anext(signals)


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve until SIGTERM or SIGINT."""
    parser = argparse.ArgumentParser(prog="python -m trio_claude.testing.messages_api", description="Messages API stub")
    parser.add_argument("--port", type=int, default=0, help="port on 127.0.0.1 (default: any free one)")
    port = parser.parse_args(arguments).port
    if not 0 <= port <= LAST_PORT:  # else the system takes another
        parser.error(f"argument --port: {port} is not from 0 to {LAST_PORT}")
    trio.run(_run, port)


if __name__ == "__main__":
    main()
