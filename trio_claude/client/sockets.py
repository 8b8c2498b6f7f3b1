"""A WebSocket to a server: reach it, or say why not."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from urllib.parse import urlsplit, urlunsplit

import httpx
from httpx_ws import AsyncWebSocketSession, HTTPXWSException, WebSocketUpgradeError, aconnect_ws

from ..errors import TrioClaudeError

MESSAGE_LIMIT = 32 * 1024 * 1024
"""Bytes of one frame: twice what a server takes for a line by default."""
QUEUE = 64
"""Frames that wait here unread; then the server waits."""
CONNECT_TIMEOUT = 10.0
"""Seconds for TCP and the handshake."""


class ConnectFailed(TrioClaudeError):
    """The server could not be reached, or refused the handshake; the text says which."""


def door(url: str, path: str = "/ws/claude", query: str = "frames=verbatim") -> str:
    """Return a server's address, with or without scheme and path, as the address of a door."""
    parts = urlsplit(url if "://" in url else f"http://{url}")
    scheme = {"http": "ws", "https": "wss"}.get(parts.scheme, parts.scheme)
    return urlunsplit((scheme, parts.netloc, parts.path if len(parts.path) > 1 else path, query, ""))


@asynccontextmanager
async def open_socket(url: str, name: str) -> AsyncIterator[AsyncWebSocketSession]:
    """Connect to a door and yield the socket; `name` is the address as its user knows it. Raises `ConnectFailed`."""
    loopback = urlsplit(url).hostname in ("127.0.0.1", "localhost", "::1")
    async with httpx.AsyncClient(
        trust_env=not loopback, timeout=httpx.Timeout(None, connect=CONNECT_TIMEOUT)
    ) as client:
        connection: AbstractAsyncContextManager[AsyncWebSocketSession] = aconnect_ws(
            url,
            client,
            max_message_size_bytes=MESSAGE_LIMIT,
            queue_size=QUEUE,
            keepalive_ping_interval_seconds=None,
        )
        try:
            socket = await connection.__aenter__()
        except WebSocketUpgradeError as error:
            raise ConnectFailed(f"{name} refused: HTTP {error.response.status_code}") from error
        except (httpx.InvalidURL, httpx.HTTPError, HTTPXWSException, OSError) as error:
            raise ConnectFailed(f"can't reach {name}: {error}") from error
        try:
            yield socket
        finally:
            await connection.__aexit__(None, None, None)
