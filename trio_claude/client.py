"""The client library for `/ws/claude`, for Trio and asyncio programs alike.

Duty: ask a server one thing and yield what it says until the end. This module must never run a CLI itself and never
retry a prompt: a prompt that was sent may have had effects.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import attrs
import httpx
from httpx_ws import AsyncWebSocketSession, HTTPXWSException, WebSocketDisconnect, WebSocketUpgradeError, aconnect_ws

from .errors import TrioClaudeError

MESSAGE_LIMIT = 32 * 1024 * 1024
"""Bytes of one frame: twice what a server takes for a line by default."""
QUEUE = 64
"""Frames that wait here unread; then the server waits."""
CONNECT_TIMEOUT = 10.0
"""Seconds for TCP and the handshake."""


class ConnectFailed(TrioClaudeError):
    """The server could not be reached, or refused the handshake; the text says which."""


@attrs.frozen
class Ended:
    """How an answer ended: the close code, the close reason with the receipt, and the server's error if it said one."""

    code: int
    reason: str
    error: str | None = None

    @property
    def ok(self) -> bool:
        """Whether the CLI came to a good end."""
        return self.code == 1000


class Answer:
    """What comes back for one prompt: iterate over the CLI's lines; then `ended` says how it went.

    Lines are JSON as the CLI wrote them; `notes` collects what the server itself and the CLI's stderr said, at most
    `NOTES` of them. Resource handling: lives in the context that `ask` gives; leaving it early ends the run.
    """

    NOTES = 1000

    def __init__(self, socket: AsyncWebSocketSession) -> None:
        self._socket = socket
        self._error: str | None = None
        self.notes: list[dict[str, Any]] = []
        self.ended: Ended | None = None

    def __aiter__(self) -> Answer:
        return self

    async def __anext__(self) -> str:
        while (text := await self._receive()) is not None:
            note = _gateway_note(text)
            if note is None:
                return text
            self._error = note.get("error", self._error)
            if len(self.notes) < self.NOTES:
                self.notes.append(note)
        raise StopAsyncIteration

    async def _receive(self) -> str | None:
        """Return the next frame, None at the end."""
        try:
            return await self._socket.receive_text()
        except WebSocketDisconnect as end:
            self.ended = Ended(int(end.code), end.reason or "", self._error)
        except HTTPXWSException as error:
            self.ended = Ended(1006, str(error) or "the connection broke", self._error)
        return None


def _gateway_note(text: str) -> dict[str, Any] | None:
    """Return a frame of the server's own; the CLI's lines all have a type."""
    try:
        said = json.loads(text)
    except ValueError:
        return None
    return said if isinstance(said, dict) and said.keys() & {"info", "error", "stderr"} and "type" not in said else None


def door(url: str, path: str = "/ws/claude", query: str = "frames=verbatim") -> str:
    """Return a server's address, with or without scheme and path, as the address of a door."""
    parts = urlsplit(url if "://" in url else f"http://{url}")
    scheme = {"http": "ws", "https": "wss"}.get(parts.scheme, parts.scheme)
    return urlunsplit((scheme, parts.netloc, parts.path if len(parts.path) > 1 else path, query, ""))


@asynccontextmanager
async def ask(prompt: str, *, meta: str, url: str = "http://127.0.0.1:3000", **options: Any) -> AsyncIterator[Answer]:
    """Send a prompt and yield its `Answer`; leaving the context ends the run. `options` are those of the wire contract.

    Raises `ConnectFailed`.
    """
    loopback = urlsplit(door(url)).hostname in ("127.0.0.1", "localhost", "::1")
    async with httpx.AsyncClient(
        trust_env=not loopback, timeout=httpx.Timeout(None, connect=CONNECT_TIMEOUT)
    ) as client:
        try:
            connection: AbstractAsyncContextManager[AsyncWebSocketSession] = aconnect_ws(
                door(url),
                client,
                max_message_size_bytes=MESSAGE_LIMIT,
                queue_size=QUEUE,
                keepalive_ping_interval_seconds=None,
            )
            socket = await connection.__aenter__()
        except WebSocketUpgradeError as error:
            raise ConnectFailed(f"{url} refused: HTTP {error.response.status_code}") from error
        except (httpx.InvalidURL, httpx.HTTPError, HTTPXWSException, OSError) as error:
            raise ConnectFailed(f"can't reach {url}: {error}") from error
        try:
            with contextlib.suppress(HTTPXWSException):  # a server that went away is read out below, with its reason
                await socket.send_text(json.dumps({"prompt": prompt, "meta": meta, **options}))
            yield Answer(socket)
        finally:
            await connection.__aexit__(None, None, None)
