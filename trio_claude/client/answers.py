"""`/ws/claude`: ask a server one thing and hear what it says until the end."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import attrs

from .sockets import BROKEN, INBOX_LIMIT, Inbox, Socket, door, dumps, open_bare, open_socket, open_tasks


@attrs.frozen
class Ended:
    """How an answer ended: the close code, the close reason with the receipt, and the server's error if it said one."""

    code: int
    reason: str
    error: str | None = None

    @property
    def ok(self) -> bool:
        """Whether the CLI came to a good end; a run that somebody else has ended says so as its error."""
        return self.code == 1000 and self.error is None


class Answer:
    """What comes back for one prompt: iterate over the CLI's lines; then `ended` says how it went.

    Lines are JSON as the CLI wrote them; `notes` collects what the server itself and the CLI's stderr said, at most
    `NOTES` of them. What is not iterated over is kept, up to `INBOX_LIMIT` bytes; then the server waits, at most for
    its `send_timeout` (120 s). Resource handling: lives in the context that `ask` gives; leaving it early ends the run.
    """

    NOTES = 1000

    def __init__(self, socket: Socket) -> None:
        self._socket = socket
        self._frames: Inbox[str] = Inbox(INBOX_LIMIT, socket.show_life)
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
        if (text := await self._frames.take()) is None:
            code, reason = self._socket.code, self._socket.reason
            self.ended = Ended(code, reason, self._error) if code else Ended(BROKEN, "it was left", self._error)
        return text

    async def read(self) -> None:
        """Read to the end, in a task of its own: a read that asyncio itself cancels may lose its frame."""
        try:
            while (text := await self._socket.receive()) is not None:
                await self._frames.put(text, len(text))
        finally:  # left too: whoever still iterates waits no longer
            self._frames.close()


def _gateway_note(text: str) -> dict[str, Any] | None:
    """Return a frame of the server's own, whose words are text; the CLI's lines all have a type."""
    try:
        said = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(said, dict) or "type" in said:
        return None
    words = [said[name] for name in ("info", "error", "stderr") if name in said]
    return said if words and all(isinstance(word, str) for word in words) else None


@asynccontextmanager
async def ask(
    prompt: str,
    *,
    meta: str,
    url: str = "http://127.0.0.1:3000",
    key: str | None = None,
    headers: Mapping[str, str] | None = None,
    **options: Any,
) -> AsyncIterator[Answer]:
    """Send a prompt and yield its `Answer`; leaving the context ends the run.

    `key` is an API key or token, for servers that want one. `options` are those of the wire contract. `headers` go with
    the handshake: `traceparent`, where the run is to be part of a trace.

    Raises `ConnectFailed`, and TypeError or ValueError for what is no JSON.
    """
    text = dumps({"prompt": prompt, "meta": meta, **options})
    async with open_bare(open_socket(door(url), url, key, headers=headers)) as socket:
        with contextlib.suppress(ConnectionError):  # a server that went away is read out below, with its reason
            await socket.send(text)
        answer = Answer(socket)
        async with open_tasks() as tasks:
            tasks.start_soon(answer.read)
            try:
                yield answer
            finally:
                tasks.cancel_scope.cancel()
