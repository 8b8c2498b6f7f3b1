"""A server that says what a test has written down: a session is started, breaks, and is refused or taken back."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import attrs
import trio
from trio_websocket import ConnectionClosed, WebSocketConnection, WebSocketRequest, serve_websocket

RUN = "0" * 32
CLOSES = {"draining": 1012, "not-open": 1008, "credentials": 1008, "replaced": 1000}
"""The close codes behind refusals, 1013 behind all others."""


@attrs.define
class Scripted:
    """`answers` are what who comes back gets, one after the other and the last again and again.

    Each is `taken` (its turn goes on), `broken` (no word), or a code, with what else the refusal says. `came` is when
    each came. `late` is the seconds from a refusal to the close behind it.
    """

    answers: Sequence[str | tuple[str, dict[str, Any]]]
    late: float = 0
    url: str = ""
    came: list[float] = attrs.Factory(list)

    async def serve(self, request: WebSocketRequest) -> None:
        socket = await request.accept(subprotocol=next(iter(request.proposed_subprotocols), None))
        with contextlib.suppress(ConnectionClosed):  # the client left
            await self._talk(socket)

    async def _talk(self, socket: WebSocketConnection) -> None:
        await _tell(socket, "hello", protocol=1)
        first = json.loads(await socket.get_message())
        if first["op"] == "start":
            await _tell(socket, "started", run=RUN, session="s", warm=False, history=True)
            await socket.get_message()
            await socket.send_message('{"type":"system","n":1}')
            await socket._stream.aclose()
            return
        answer = self.answers[min(len(self.came), len(self.answers) - 1)]
        self.came.append(trio.current_time())
        if answer == "broken":
            await socket._stream.aclose()
        elif answer == "taken":
            await self._take(socket, first)
        else:
            code, more = answer if isinstance(answer, tuple) else (answer, {})
            await _tell(socket, "refused", code=code, error=f"refused: {code}", **more)
            await trio.sleep(self.late)
            await socket.aclose(CLOSES.get(code, 1013), code)

    async def _take(self, socket: WebSocketConnection, first: dict[str, Any]) -> None:
        """Go on behind the first line; a message of the turn is refused on the way, which ends nothing."""
        assert first["after"] == 1
        more = {"role": "owner", "from": 2, "ended": False, "pending": [], "heard": 1}
        await _tell(socket, "attached", run=RUN, **more)
        await socket.send_message('{"type":"system","n":2}')
        await _tell(socket, "refused", code="busy", error="not now", retry_after=1, request_id="of-a-message")
        await socket.send_message('{"type":"result","subtype":"success","is_error":false,"result":"done","n":3}')
        await socket.get_message()
        await _tell(socket, "ended", lines=3, reason="stopped", retryable=False, receipt={"survivors": 0})
        await socket.aclose(1000, "stopped")


async def _tell(socket: WebSocketConnection, event: str, **fields: object) -> None:
    await socket.send_message(json.dumps({"type": "gateway", "event": event, **fields}))


@asynccontextmanager
async def scripted(*answers: str | tuple[str, dict[str, Any]], late: float = 0) -> AsyncIterator[Scripted]:
    async with trio.open_nursery() as nursery:
        server = Scripted(answers, late)
        listening = await nursery.start(serve_websocket, server.serve, "127.0.0.1", 0, None)
        server.url = f"http://127.0.0.1:{listening.port}"
        yield server
        nursery.cancel_scope.cancel()
