"""A client by hand, and what it was told: counted, compared and hashed as it comes, never kept.

This module must never know what a client is about to do, nor look into the journal.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import socket
import struct
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import attrs
import trio
from common import masked, masked_text, open_socket, split_frames

FAKE = b'{"type":"fake","n":'
RESULT = (b'{"type":"result",', b'{"duration_api_ms":')
"""How a turn's last line begins: the fake CLI's, the real one's."""
OWN = {"claude": (b'{"info":', b'{"error":', b'{"stderr":'), "session": (b'{"type":"gateway"',)}
"""How the server's own frames begin, by door."""
PATHS = {"claude": "/ws/claude?frames=verbatim", "session": "/ws/session"}
CHUNK = 64 * 1024
MARK_PAUSE = 0.2
"""Seconds between two marks."""
MARKS = 20
"""Marks that are kept: of the last seconds."""
RECEIVE_BUFFER = 64 * 1024
"""Bytes of the kernel's buffer of a client that reads slowly."""


class Gone(Exception):
    """The connection is over, and what was waited for has not come."""


@attrs.frozen
class Mark:
    """How far a client was at a time (`time.monotonic`): the last line's number, and the digest up to there."""

    at: float
    last: int
    digest: bytes


class Stretch:
    """Lines that followed on each other: the numbers of the first and the last, and their digest."""

    def __init__(self, first: int) -> None:
        self.first: int = first
        self.last: int = first - 1
        self.marks: deque[Mark] = deque([Mark(0.0, first - 1, hashlib.blake2b().digest())], MARKS)
        self._hash = hashlib.blake2b()

    def add(self, lines: list[bytes]) -> None:
        """Take the next lines."""
        self._hash.update(b"\n".join(lines) + b"\n")
        self.last += len(lines)
        now = time.monotonic()
        if now > self.marks[-1].at + MARK_PAUSE:
            self.marks.append(Mark(now, self.last, self.digest))

    @property
    def digest(self) -> bytes:
        """The digest of all of them, each with a newline behind it."""
        return self._hash.digest()


class Seen:
    """What one client was told of one run, however often it came back.

    `wanted` is how many numbered lines the turn is to have, None where that is not known. `faults` is what was wrong.
    """

    def __init__(self, door: str, *, owner: bool = True, after: int = 0) -> None:
        self.owner: bool = owner
        self.stretches: list[Stretch] = [Stretch(after + 1)]
        self.wanted: int | None = None
        self.results: int = 0
        self.gaps: int = 0
        self.ended: dict[str, Any] | None = None
        self.error: str = ""
        self.code: int | None = None
        self.reason: str = ""
        self.partial: bool = False
        """Whether it left, or was shown out, before the run's end."""
        self.faults: list[str] = []
        self._own = OWN[door]
        self._number: int | None = 0 if not after else None

    @property
    def last(self) -> int:
        """The number of the last line."""
        return self.stretches[-1].last

    def take(self, frames: list[bytes]) -> None:
        """Take text frames, in order."""
        lines: list[bytes] = []
        for frame in frames:
            if frame.startswith(self._own):
                self._add(lines)
                lines = []
                self._hear(frame)
                continue
            lines.append(frame)
            if frame.startswith(FAKE):
                self._count(int(frame[len(FAKE) : frame.index(b",", len(FAKE))]))
            elif frame.startswith(RESULT):
                self._end_turn()
        self._add(lines)

    def _add(self, lines: list[bytes]) -> None:
        if lines:
            self.stretches[-1].add(lines)

    def _count(self, number: int) -> None:
        """Take a line that the CLI has numbered."""
        if self._number is not None and number != self._number + 1:
            self.fault(f"the CLI's line {number} came behind its line {self._number}")
        self._number = number

    def _end_turn(self) -> None:
        self.results += 1
        if self.wanted is not None and self._number is not None and self._number != self.wanted:
            self.fault(f"a turn of {self.wanted} numbered lines ended at {self._number}")
        self.wanted, self._number = None, 0

    def _hear(self, frame: bytes) -> None:
        said = json.loads(frame)
        event = said.get("event")
        if event == "gap":
            self._skip(said["from"], said["to"])
        elif event == "ended":
            self.ended = said
        elif "error" in said:
            self.error = str(said["error"])

    def _skip(self, first: int, to: int) -> None:
        if self.owner:
            self.fault(f"an owner was told of a gap, {first} to {to}")
        if first != self.last + 1:
            self.fault(f"a gap from {first} on came behind line {self.last}")
        self.gaps += 1
        self.stretches.append(Stretch(to + 1))
        self._number, self.wanted = None, None

    def fault(self, text: str) -> None:
        """Note what is wrong."""
        if len(self.faults) < 3:
            self.faults.append(text)


class Client:
    """One connection; pings are answered whenever it reads, and nothing is read ahead of who waits.

    Error handling: `until` raises `Gone` where the connection ends first; `say` raises it where it is over already.
    """

    def __init__(self, stream: trio.SocketStream, rest: bytes, seen: Seen) -> None:
        self.seen = seen
        self.over: bool = False
        self._stream = stream
        self._rest = rest
        self._waiting: list[bytes] = []

    async def say(self, message: dict[str, Any] | str) -> None:
        """Send a message."""
        data = masked(1, message.encode()) if isinstance(message, str) else masked_text(message)
        await self._send(data)

    async def op(self, op: str, **more: object) -> None:
        """Say something to the gateway itself."""
        await self.say({"type": "gateway", "op": op, **more})

    async def user(self, text: str) -> None:
        """Say something to the model."""
        await self.say({"type": "user", "message": {"role": "user", "content": text}})

    async def _send(self, data: bytes) -> None:
        try:
            await self._stream.send_all(data)
        except (OSError, trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise Gone(str(error)) from error

    async def until(self, *starts: bytes) -> dict[str, Any]:
        """Read up to the first frame that begins so, and return it."""
        while frames := self._waiting or await self._receive():
            for index, frame in enumerate(frames):
                if frame.startswith(starts):
                    self._waiting = frames[index + 1 :]
                    self.seen.take(frames[: index + 1])
                    found: dict[str, Any] = json.loads(frame)
                    return found
            self._waiting = []
            self.seen.take(frames)
        raise Gone(f"closed with {self.seen.code} ({self.seen.reason}) {self.seen.error} before {starts}")

    async def event(self, *names: str) -> dict[str, Any]:
        """Read up to an event of the gateway's."""
        return await self.until(*(b'{"type":"gateway","event":"%s"' % name.encode() for name in names))

    async def past(self, line: int) -> None:
        """Read until a line has come, with what came along. Raises `Gone`."""
        while self.seen.last < line:
            if not (frames := self._waiting or await self._receive()):
                raise Gone(f"closed with {self.seen.code} ({self.seen.reason}) {self.seen.error} before line {line}")
            self._waiting = []
            self.seen.take(frames)

    async def read(self, *, slowly: float = 0.0) -> None:
        """Read to the end; with so many seconds between two reads."""
        while frames := self._waiting or await self._receive():
            self._waiting = []
            self.seen.take(frames)
            if slowly:
                await trio.sleep(slowly)

    async def _receive(self) -> list[bytes]:
        """Return the next text frames, none at the end."""
        texts: list[bytes] = []
        while not texts and not self.over:
            frames, self._rest = split_frames(self._rest)  # some may have come with the head
            if not frames:
                try:
                    chunk = await self._stream.receive_some(CHUNK)
                except (OSError, trio.BrokenResourceError, trio.ClosedResourceError):
                    chunk = b""
                frames, self._rest = split_frames(self._rest + chunk)
                self.over = not chunk
            for opcode, payload in frames:
                if opcode == 1:
                    texts.append(payload)
                else:
                    await self._control(opcode, payload)
        return texts

    async def _control(self, opcode: int, payload: bytes) -> None:
        if opcode == 9:
            with contextlib.suppress(Gone):
                await self._send(masked(10, payload))
        elif opcode == 8:
            self.seen.code = int.from_bytes(payload[:2], "big")
            self.seen.reason = payload[2:].decode()
            self.over = True
            with contextlib.suppress(Gone):
                await self._send(masked(8, payload[:2]))

    # leaving

    def reset(self) -> None:
        """Leave with a reset."""
        self.seen.partial = True
        with contextlib.suppress(OSError):
            self._stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._stream.socket.close()

    def finish(self, *, politely: bool) -> None:
        """Say that nothing more comes, with a close frame before it or without one."""
        self.seen.partial = True
        with contextlib.suppress(OSError):
            if politely:
                os.write(self._stream.socket.fileno(), masked(8, b"\x03\xe8"))
            self._stream.socket.shutdown(socket.SHUT_WR)

    def keep(self) -> int:
        """Return a descriptor that keeps the connection as it is when this client is closed."""
        return os.dup(self._stream.socket.fileno())

    def narrow(self) -> None:
        """Let the kernel hold little for this client."""
        self._stream.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)

    def close(self) -> None:
        """Close the socket."""
        self._stream.socket.close()


@asynccontextmanager
async def connecting(port: int, door: str, seen: Seen, headers: str = "") -> AsyncIterator[Client]:
    """Connect a client, with further headers. Raises `Gone` where nobody accepts."""
    try:
        stream, rest = await open_socket(port, PATHS[door], headers)
    except (OSError, trio.BrokenResourceError) as error:
        raise Gone(f"could not connect: {error}") from error
    client = Client(stream, rest, seen)
    try:
        yield client
    finally:
        client.close()
