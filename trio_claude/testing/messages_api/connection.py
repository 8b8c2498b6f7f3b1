"""Carry one client's requests and answers: HTTP on a stream, and what to do when either end breaks off.

Rule: nothing here knows what a message says; what a client does wrong ends its connection and nothing else.
"""

from __future__ import annotations

import contextlib
import json
import socket
import struct

import attrs
import h11
import trio

from ..model import Ending
from .asked import ApiRequest, parse_body
from .replies import EventStream, Reply, error_reply, response

MAX_BODY_BYTES = 64 * 2**20
"""A request with images reaches tens of MB; the API itself refuses at 32 MB, and that is not ours to judge."""
MAX_HEAD_BYTES = 64 * 2**10
READ_BYTES = 64 * 2**10
LINGER_SECONDS = 1.0
"""How long a refused client may go on sending: closing with unread bytes would destroy the refusal on its way."""
RESET_DELAY_SECONDS = 0.2
"""Before a reset, so that the client reads the deltas first."""
LAST_EVENTS = frozenset({"message_stop", "error"})


@attrs.frozen(eq=False)
class Connection:
    """One client's connection.

    Resource handling: closing the stream is the caller's. Error handling: `trio.BrokenResourceError` from `read` means
    that the client is gone; `perform` reports that by its ending.
    """

    stream: trio.SocketStream
    http: h11.Connection = attrs.field(
        init=False, factory=lambda: h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEAD_BYTES)
    )

    async def read(self) -> ApiRequest | None:
        """Read the next request; None if there is none, or one that had to be refused."""
        try:
            head = await self._next_event()
            return await self._read_body(head) if isinstance(head, h11.Request) else None
        except h11.RemoteProtocolError as error:
            await self._refuse(error)
            return None

    async def perform(self, plan: Reply | EventStream) -> Ending:
        """Send an answer, or as much of it as the client stays for; say how it ended."""
        ending = Ending.CLIENT_GONE
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch, nursery.cancel_scope)
            with contextlib.suppress(trio.BrokenResourceError):
                ending = await (self._reply(plan) if isinstance(plan, Reply) else self._stream(plan))
            nursery.cancel_scope.cancel()
        return ending

    def reuse(self) -> bool:
        """Make ready for another request, if the client keeps the connection."""
        reusable = self.http.our_state is h11.DONE and self.http.their_state is h11.DONE
        if reusable:
            self.http.start_next_cycle()
        return reusable

    async def _next_event(self) -> object:
        while (event := self.http.next_event()) is h11.NEED_DATA:
            if self.http.they_are_waiting_for_100_continue:
                await self._send(h11.InformationalResponse(status_code=100, headers=[]))
            self.http.receive_data(await self.stream.receive_some(READ_BYTES))
        return event

    async def _read_body(self, head: h11.Request) -> ApiRequest:
        headers = {name.decode("ascii"): value.decode("latin-1") for name, value in head.headers}
        self._check_size(int(headers.get("content-length", 0)))
        raw = bytearray()
        while isinstance(event := await self._next_event(), h11.Data):
            raw += event.data
            self._check_size(len(raw))
        body = parse_body(bytes(raw))
        return ApiRequest(head.method.decode(), head.target.decode("latin-1"), headers, body, len(raw))

    def _check_size(self, size: int) -> None:
        if size > MAX_BODY_BYTES:
            raise h11.RemoteProtocolError(f"the body is over {MAX_BODY_BYTES} bytes", error_status_hint=413)

    async def _refuse(self, error: h11.RemoteProtocolError) -> None:
        with contextlib.suppress(h11.LocalProtocolError):  # a HEAD takes no body: it is refused by closing
            await self._reply(error_reply(error.error_status_hint, str(error), {"connection": "close"}))
        with trio.move_on_after(LINGER_SECONDS):
            await self.stream.send_eof()
            while await self.stream.receive_some(READ_BYTES):
                pass

    async def _watch(self, answering: trio.CancelScope) -> None:
        """End the answer as soon as the client closes, or half-closes, the connection.

        A client that sends its next request early is watched no longer, so that what it sends stays in its socket.
        """
        try:
            data = await self.stream.receive_some(READ_BYTES)
        except trio.BrokenResourceError:
            data = b""
        if data:
            self.http.receive_data(data)
        else:
            answering.cancel()

    async def _reply(self, reply: Reply) -> Ending:
        body = json.dumps(reply.body).encode() if reply.body else b""
        framing = {"content-type": "application/json", "content-length": str(len(body))}
        await self._send(response(reply.status, {**framing, **reply.headers}), h11.Data(body), h11.EndOfMessage())
        return Ending.COMPLETE

    async def _stream(self, answer: EventStream) -> Ending:
        for event in answer.events:
            if self.http.our_state is h11.SEND_RESPONSE:
                await self._send(response(200, {"content-type": "text/event-stream", "cache-control": "no-cache"}))
            data = h11.Data(f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode())
            # One write: a client may leave as soon as it has the last event, and has been served all the same.
            await self._send(data, *([h11.EndOfMessage()] if event["type"] in LAST_EVENTS else []))
            if answer.pause and event["type"] == "content_block_delta":
                await trio.sleep(answer.pause)
        return await self._end(answer.ending)

    async def _end(self, ending: Ending) -> Ending:
        if ending is Ending.SILENCE:
            await trio.sleep_forever()
        if ending is Ending.RESET:
            await trio.sleep(RESET_DELAY_SECONDS)
            self.stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        return ending

    async def _send(self, *events: h11.Event) -> None:
        await self.stream.send_all(b"".join(self.http.send(event) or b"" for event in events))
