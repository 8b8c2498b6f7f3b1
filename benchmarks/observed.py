"""A server that is observed just as much as its words say: `observed.py CLI [metrics] [logs] [history]`.

For `observing.py`: `serve` always logs. What is logged goes to stderr.
"""

from __future__ import annotations

import contextlib
import signal
import sys

import trio

from trio_claude import Config, open_server
from trio_claude.commands.process import take_process
from trio_claude.logs import open_log

MOST_RUNS = 2000
JOURNAL = "journal.db"


async def main(cli: str, *words: str) -> None:
    """Serve until SIGTERM; print where."""
    take_process()
    config = Config(
        port=0, cli=cli, max_runs=MOST_RUNS, metrics="metrics" in words,
        journal=f"sqlite:{JOURNAL}" if "history" in words else "none",
    )  # fmt: skip
    with contextlib.ExitStack() as stack, trio.open_signal_receiver(signal.SIGTERM) as signals:
        observers = [stack.enter_context(open_log(config))] if "logs" in words else []
        async with open_server(config, observers) as server:
            print(f"listening on {server.url}", flush=True)
            await anext(signals)
            await server.drain(0)


if __name__ == "__main__":
    trio.run(main, *sys.argv[1:])
