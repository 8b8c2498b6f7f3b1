"""How a program comes to a session: a new run, or one that is there.

Duty: say the first message, and see that a run is left as its program wants. This module must never leave a run behind
that nobody asked to go on.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from .decisions import Decide, deny
from .links import Link, Reconnect
from .sessions import Hear, Json, Session
from .sockets import door, dumps, open_tasks


@asynccontextmanager
async def open_session(
    *,
    meta: str,
    url: str = "http://127.0.0.1:3000",
    key: str | None = None,
    on_approval: Decide = deny,
    on_event: Hear = lambda _said: None,
    reconnect: Reconnect | None = None,
    headers: Mapping[str, str] | None = None,
    **options: Any,
) -> AsyncIterator[Session]:
    """Open a session and yield it; leaving the context ends its run.

    `key` is an API key or token, for servers that want one. `options` are those of the wire contract.
    `on_approval` decides what a tool may do; without it all that is asked for is denied. `on_event` hears what the
    server itself says. With `reconnect` the run waits for its client where the connection breaks, and what is said and
    asked meanwhile goes on afterwards; without it the run ends with its connection. `headers` go with each handshake:
    `traceparent`, where the run is to be part of a trace.
    Raises `ConnectFailed`, `Refused`, and `ConnectionError`.
    """
    if reconnect:
        options["on_disconnect"] = {"grace": reconnect.grace}
    link = Link(door(url, "/ws/session", ""), url, key, reconnect, headers)
    start = {"type": "gateway", "op": "start", "meta": meta, "options": options}
    async with _opened(link, start, on_approval, on_event) as session:
        yield session


@asynccontextmanager
async def attach_session(
    run: str,
    *,
    after: int = 0,
    viewer: bool = False,
    url: str = "http://127.0.0.1:3000",
    key: str | None = None,
    on_approval: Decide = deny,
    on_event: Hear = lambda _said: None,
    reconnect: Reconnect | None = None,
    headers: Mapping[str, str] | None = None,
) -> AsyncIterator[Session]:
    """Come to a run that is there, and yield its session, with the lines behind the number `after`.

    The run's owner was detached, or has died, else this program takes its place; leaving the context ends the run.
    A `viewer` only watches: nothing is asked of it, approvals come as lines, and leaving the context only leaves. A run
    that is over is told again out of the journal. The rest is as in `open_session`.
    Raises `ConnectFailed`, `Refused`, and `ConnectionError`.
    """
    link = Link(door(url, "/ws/session", ""), url, key, reconnect, headers)
    attach = {"type": "gateway", "op": "attach", "run": run, "after": after, "as": "viewer" if viewer else "owner"}
    async with _opened(link, attach, on_approval, on_event) as session:
        yield session


@asynccontextmanager
async def _opened(link: Link, first: Json, decide: Decide, hear: Hear) -> AsyncIterator[Session]:
    """Say a first message, wait until there is a run, and see to it that it is left in the end."""
    dumps(first)  # what can't be said is the program's error, and raised as such
    async with open_tasks() as tasks:
        session = Session(link, decide, hear, tasks)
        tasks.start_soon(session.read, first)
        try:
            await session.wait_started()
            yield session
        finally:
            session.part()
