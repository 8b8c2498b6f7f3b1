"""A client of `/ws/session` for tests: says lines, keeps every frame that comes."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import contract
import trio
from harness import Listening, bearer
from trio_websocket import ConnectionClosed, WebSocketConnection, open_websocket_url


class Talk:
    """One connection; `frames` holds all that came and `came` when, `code` the close code once there is one."""

    def __init__(self, socket: WebSocketConnection) -> None:
        self.socket = socket
        self.frames: list[dict[str, Any]] = []
        self.came: list[float] = []
        self.code: int | None = None
        self.reason = ""
        self._seen = 0
        self._stir = trio.Event()

    async def read(self) -> None:
        try:
            while True:
                text = await self.socket.get_message()
                contract.check_event(text, first=not self.frames)
                self.frames.append(_frame(text))
                self.came.append(trio.current_time())
                self._stir.set()
        except ConnectionClosed as end:
            self.code, self.reason = end.reason.code, end.reason.reason or ""
            contract.check_close("session", self.code)
        self._stir.set()

    async def say(self, line: dict[str, Any] | str) -> None:
        await self.socket.send_message(line if isinstance(line, str) else json.dumps(line))

    async def start(self, meta: str = "TEST-1", **options: object) -> dict[str, Any]:
        await self.say({"type": "gateway", "op": "start", "meta": meta, **({"options": options} if options else {})})
        return await self.event("started")

    async def user(self, text: str) -> None:
        await self.say({"type": "user", "message": {"role": "user", "content": text}})

    async def stop(self, mode: str) -> None:
        await self.say({"type": "gateway", "op": "stop", "mode": mode})

    async def control(self, request: str, subtype: str, **fields: object) -> dict[str, Any]:
        """Ask the CLI; return its answer."""
        await self.say({"type": "control_request", "request_id": request, "request": {"subtype": subtype, **fields}})
        return await self.next(
            lambda frame: frame["type"] == "control_response" and frame["response"]["request_id"] == request
        )

    async def answer(self, request: str, **answer: object) -> None:
        response = {"subtype": "success", "request_id": request, "response": answer}
        await self.say({"type": "control_response", "response": response})

    async def next(self, wanted: Callable[[dict[str, Any]], bool], seconds: float = 20) -> dict[str, Any]:
        """Return the next frame that is wanted, behind the last one that was."""
        at = self._seen
        with trio.fail_after(seconds):
            while True:
                while at < len(self.frames):
                    at += 1
                    if wanted(self.frames[at - 1]):
                        self._seen = at
                        return self.frames[at - 1]
                if self.code is not None:
                    raise AssertionError(f"closed with {self.code}: {self.frames[-3:]}")
                self._stir = trio.Event()
                await self._stir.wait()

    async def event(self, name: str, seconds: float = 20) -> dict[str, Any]:
        return await self.next(lambda frame: frame.get("event") == name, seconds)

    async def result(self, seconds: float = 20) -> dict[str, Any]:
        return await self.next(lambda frame: frame["type"] == "result", seconds)

    async def asked(self) -> dict[str, Any]:
        return await self.next(lambda frame: frame["type"] == "control_request")

    async def end(self, seconds: float = 20) -> dict[str, Any]:
        """Wait for the close; return `ended`."""
        ended = await self.event("ended", seconds)
        with trio.fail_after(seconds):
            while self.code is None:
                self._stir = trio.Event()
                await self._stir.wait()
        return ended

    def lines(self) -> list[dict[str, Any]]:
        """The CLI's own lines."""
        return [frame for frame in self.frames if frame["type"] != "gateway"]


def _frame(text: str) -> dict[str, Any]:
    """Return a frame; a line of the CLI that is no object is one of no type."""
    try:
        said = json.loads(text)
    except ValueError:
        said = None
    return said if isinstance(said, dict) else {"type": "", "text": text}


@asynccontextmanager
async def open_talk(server: Listening, key: str | None = None, **headers: str) -> AsyncIterator[Talk]:
    """Connect, and read in a task of its own."""
    url = f"ws://127.0.0.1:{server.port}/ws/session"
    async with (
        open_websocket_url(
            url, max_message_size=2**27, message_queue_size=10000, extra_headers=bearer(key, **headers)
        ) as socket,
        trio.open_nursery() as nursery,
    ):
        talk = Talk(socket)
        nursery.start_soon(talk.read)
        try:
            yield talk
        finally:
            with trio.CancelScope(shield=True), trio.move_on_after(2):
                await socket.aclose()
                await socket._stream.aclose()
            nursery.cancel_scope.cancel()
