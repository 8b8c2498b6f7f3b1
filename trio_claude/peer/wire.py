"""The connection's bytes: what trio-websocket takes for its stream, and the one write path.

Rule 1: data waits here in order; control frames (pongs, notices, the close) never wait behind a data write's wait.
Rule 2: nothing follows a close frame or a broken write. Rule 3: a write that is cancelled leaves its rest to be sent
before anything else, so a frame is never torn but by a reset.
"""

from __future__ import annotations

import contextlib
import fcntl
import socket
import struct
import sys
import termios
from collections.abc import Callable
from typing import Final

import attrs
import trio

from ..config import Config
from ..errors import CloseCode
from ..turns import Turns
from .frames import CLOSE, PONG, FrameGuard, close_frame

RECEIVE_SIZE: Final = 65536
"""Bytes read at a time; trio-websocket's own 4,096 cost two thirds of its speed."""
MUCH: Final = 1024
"""Bytes in one read that are more than a client says in passing."""
NOTICES_LIMIT: Final = 64 * 1024
"""Bytes of control frames that may wait for a client which does not read; over it the client is dropped."""
DISCARD_LIMIT: Final = 16 * 1024 * 1024
"""Bytes of a closing client that are read and dropped, so that our close frame is not lost to a reset."""
_UNSAID_CODES = (1002, 1003, 1007)
"""Protocol errors upon which trio-websocket closes TCP without a close frame."""


@attrs.frozen
class Closed:
    """How a connection ended: the close code that was sent, None where none could be, and its reason."""

    code: int | None
    reason: str


class Wire(trio.abc.Stream):
    """One connection's bytes, in both directions.

    Resource handling: owns the socket. Error handling: raises what Trio's streams raise; a write that stands still for
    `send_timeout` seconds breaks the connection. A cancelled write leaves its rest to be sent before anything else.
    """

    def __init__(self, sock: socket.socket, early: bytes, config: Config, turns: Turns) -> None:
        self._socket = sock
        self._early = early
        self._config = config
        self._turns = turns
        self._guard = FrameGuard(config.max_message, config.max_frames)
        self._lock = trio.StrictFIFOLock()
        self._rest: memoryview | None = None
        self._late: list[bytes] = []
        self._control: list[bytes] = []
        self._pong: bytes | None = None
        self._closing = False
        self._flushing = False
        self.start_flush: Callable[[], None]
        self.why_closed: Callable[[], Closed | None]
        self.forget()
        self.heard: float = trio.current_time()
        self.close_sent: int | None = None
        self.broken: bool = False

    def allow(self, limit: int) -> None:
        """Let a message have so many bytes from now on."""
        self._guard.max_message = limit

    def forget(self) -> None:
        """Know no client any more, so that what it held is free at once and no matter for the garbage collector."""
        self.start_flush, self.why_closed = _no_flush, _not_closed

    # reading

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Return what the client sent, empty at its end."""
        data = await self._next(max_bytes or RECEIVE_SIZE)
        self.heard = trio.current_time()
        looked_at, heard = self._guard.feed(data)
        self._early = data[looked_at:]
        if self._guard.wrong:
            self.post(close_frame(CloseCode.TOO_LONG, self._guard.wrong))
            return b""
        return heard

    async def _next(self, max_bytes: int) -> bytes:
        """Return bytes that were not looked at yet; one who sends much waits for a turn."""
        data = self._early or await self._receive(max_bytes)
        if data is self._early:
            await trio.lowlevel.checkpoint()
        if len(data) > MUCH:
            await self._turns.wait(self)
        return data

    async def _receive(self, max_bytes: int) -> bytes:
        while True:
            self._check_open()
            await trio.lowlevel.wait_readable(self._socket)
            try:
                return self._socket.recv(max_bytes)
            except BlockingIOError:
                continue
            except OSError as error:
                raise trio.BrokenResourceError(str(error)) from error

    # writing

    @property
    def writing(self) -> bool:
        """Whether a write waits for the client."""
        return self._lock.locked() or self._rest is not None

    @property
    def unsent(self) -> int:
        """Bytes that the client's system has not taken yet, of the kernel's where it tells."""
        waits = bytearray(4)
        with contextlib.suppress(OSError, ValueError):  # the socket is closed, or the system does not tell
            fcntl.ioctl(self._socket.fileno(), termios.TIOCOUTQ, waits)
        return int.from_bytes(waits, sys.byteorder) + len(self._rest or b"")

    @property
    def idle(self) -> bool:
        """Whether nobody is in the middle of a write, and nothing waits for its end."""
        return not self._lock.locked() and self._rest is None and not self._late

    def give(self, frames: bytes) -> None:
        """Send data frames, or have them sent as soon as may be; never waits, so who gives looks first for `idle`.

        Raises what `send_frames` raises.
        """
        self._check_writable()
        if self._rest is not None or self._late:  # by now; no other task had its turn since
            self._late.append(frames)
        elif (sent := self._try(frames)) == len(frames):
            return
        else:
            self._rest = memoryview(frames)[sent:]
        self._see_to_rest()

    async def send_frames(self, frames: bytes) -> None:
        """Send data frames; returns when the kernel has them. No checkpoint where it takes them at once.

        A call that is cancelled has taken them all the same: they go out as soon as may be.
        """
        if self.idle:
            self._check_writable()
            if (sent := self._try(frames)) == len(frames):
                return
            self._rest = memoryview(frames)[sent:]
            frames = b""
        try:
            async with self._lock:
                await self._drain()
                if frames:
                    self._check_writable()
                    self._rest, frames = memoryview(frames), b""
                    await self._drain()
        except trio.Cancelled:
            if frames and self.close_sent is None:
                self._late.append(frames)
            self._see_to_rest()
            raise

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Take a control frame from trio-websocket; never waits."""
        await trio.lowlevel.checkpoint_if_cancelled()
        self.post(bytes(data))

    def post(self, frame: bytes) -> None:
        """Send a control frame, or the answer to the handshake, as soon as the frame in progress is out; never waits.

        Raises trio.BrokenResourceError where nothing can be sent any more.
        """
        if self.broken:
            raise trio.BrokenResourceError("the connection is broken")
        if self.close_sent is not None:
            return
        if frame[0] == PONG:
            self._pong = frame
        elif not self.idle and self._control and sum(map(len, [*self._control, frame])) > NOTICES_LIMIT:
            self.abort()
            return
        else:
            self._control.append(frame)
        if frame[0] == CLOSE:
            self.close_sent = int.from_bytes(frame[2:4], "big") if len(frame) >= 4 else 1005
        if self.idle:
            self._rest = memoryview(self._take_control())
            self._push()
        self._see_to_rest()

    def _see_to_rest(self) -> None:
        """Have what waits sent by a task of its own, unless a writer is at it: that one sends the control lane too."""
        if self._waits() and not self._flushing and not self._lock.locked():
            self._flushing = True
            self.start_flush()

    def _waits(self) -> bool:
        """Return whether something is to be sent that no writer is at."""
        return self._rest is not None or bool(self._late or self._control or self._pong)

    async def flush(self) -> None:
        """Send everything that waits."""
        try:
            async with self._lock:
                await self._drain()
        finally:
            self._flushing = False

    async def wait_send_all_might_not_block(self) -> None:
        """Return at once: nothing that trio-websocket sends ever waits."""
        await trio.lowlevel.checkpoint()

    def _take_control(self) -> bytes:
        """Return the control frames that wait, the newest pong among them, the close frame last."""
        frames = [self._pong, *self._control] if self._pong else self._control
        self._pong, self._control = None, []
        return b"".join(frames)

    async def _drain(self) -> None:
        """Send the rest of a cut write, then what waits in the control lane. The lock is held."""
        while True:
            while self._rest is not None:
                self._push()
                if self._rest is not None:
                    await self._wait_writable()
            if not self._waits():
                return
            late, self._late = self._late, []
            self._rest = memoryview(b"".join(late) + self._take_control())

    def _push(self) -> None:
        assert self._rest is not None
        sent = self._try(self._rest)
        self._rest = self._rest[sent:] if sent < len(self._rest) else None

    def _try(self, data: bytes | memoryview) -> int:
        """Send what the kernel takes now."""
        try:
            return self._socket.send(data)
        except BlockingIOError:
            return 0
        except OSError as error:
            self.broken = True
            raise trio.BrokenResourceError(str(error)) from error

    async def _wait_writable(self) -> None:
        with trio.move_on_after(self._config.send_timeout) as patience:
            await trio.lowlevel.wait_writable(self._socket)
        if patience.cancelled_caught:
            self.abort()
        if self.broken:
            raise trio.BrokenResourceError("the client does not read")

    def _check_open(self) -> None:
        if self._socket.fileno() < 0:
            raise trio.ClosedResourceError("the connection is closed")

    def _check_writable(self) -> None:
        if self.broken:
            raise trio.BrokenResourceError("the connection is broken")
        if self.close_sent is not None:
            raise trio.ClosedResourceError("a close frame was sent")

    # ending

    def abort(self) -> None:
        """Reset the connection, now."""
        self.broken = True
        if self._socket.fileno() >= 0:
            with contextlib.suppress(OSError):
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            trio.lowlevel.notify_closing(self._socket)
            self._socket.close()

    async def aclose(self) -> None:
        """Close TCP: send what waits, then a FIN, and wait for the client's; over `close_timeout`, a reset."""
        if self._closing or self._socket.fileno() < 0:
            await trio.lowlevel.checkpoint()
            return
        self._closing = True
        self._turns.leave(self)
        if not self._all_said() and not await self._part():
            self.abort()
            return
        trio.lowlevel.notify_closing(self._socket)
        self._socket.close()
        self.broken = True

    def _all_said(self) -> bool:
        """Return whether both sides have said their close, and nothing waits to be sent."""
        waits = self.writing or self._waits()
        return self._guard.saw_close and self.close_sent is not None and not waits

    async def _part(self) -> bool:
        """Send what waits, then a FIN, and wait for the client's; return whether that went well and in time."""
        try:
            with trio.move_on_after(self._config.close_timeout, shield=True) as patience:
                self._say_why()
                await self.flush()
                await self._bid_farewell()
        except (OSError, trio.BrokenResourceError, trio.ClosedResourceError):
            return False
        return not patience.cancelled_caught and not self.broken

    def _say_why(self) -> None:
        """Say the close frame that trio-websocket leaves out after a protocol error."""
        closed = self.why_closed()
        if closed and closed.code in _UNSAID_CODES and self.close_sent is None:
            self.post(close_frame(closed.code, closed.reason))

    async def _bid_farewell(self) -> None:
        """Wait for the client's end, unless it has said its close: a close with unread bytes would be a reset."""
        if not self._guard.saw_close:
            self._socket.shutdown(socket.SHUT_WR)
            await self._discard()

    async def _discard(self) -> None:
        """Read until the client's end, at most `DISCARD_LIMIT` bytes."""
        left = DISCARD_LIMIT
        while left > 0 and (data := await self._receive(RECEIVE_SIZE)):
            left -= len(data)


def _no_flush() -> None:
    """Nothing to start a flush in."""


def _not_closed() -> None:
    """Nobody to say why."""
