"""The client at the other end: the only user of trio-websocket.

Rule 1: there is one write path, `Wire`, for every byte that goes out; data waits there in order, control frames
(pongs, notices, the close) never wait behind a data write's wait, and nothing follows a close frame or a torn write.
Rule 2: the reader never waits for a write, so that a client which reads nothing is still heard. Rule 3: no exception of
trio-websocket or of the socket leaves this room; the client is gone, and `left` says so.
"""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final

import attrs
import trio
from trio_websocket import ConnectionClosed, WebSocketConnection, wrap_server_stream

from .config import Config
from .errors import CloseCode, PeerGone
from .messages import clip
from .services import open_services
from .upgrade import Handshake

RECEIVE_SIZE: Final = 65536
"""Bytes read at a time; trio-websocket's own 4,096 cost two thirds of its speed."""
NOTICES_LIMIT: Final = 64 * 1024
"""Bytes of control frames that may wait for a client which does not read; over it the client is dropped."""
NOTSENT_LOWAT: Final = 128 * 1024
"""Unsent bytes that the kernel holds for us before a write waits (TCP_NOTSENT_LOWAT)."""
DISCARD_LIMIT: Final = 16 * 1024 * 1024
"""Bytes of a closing client that are read and dropped, so that our close frame is not lost to a reset."""

_TEXT, _CLOSE, _PING, _PONG = 0x81, 0x88, 0x89, 0x8A
_UNSAID_CODES = (1002, 1003, 1007)
"""Protocol errors upon which trio-websocket closes TCP without a close frame."""


class _Heads(dict[int, bytes]):
    """Frame heads of text frames by length; those that recur are kept."""

    def __missing__(self, size: int) -> bytes:
        head = _head(_TEXT, size)
        if size < RECEIVE_SIZE:
            self[size] = head
        return head


def _head(opcode: int, size: int) -> bytes:
    if size < 126:
        return bytes((opcode, size))
    return struct.pack("!BBH", opcode, 126, size) if size < 65536 else struct.pack("!BBQ", opcode, 127, size)


_heads = _Heads().__getitem__


def close_frame(code: int, reason: str) -> bytes:
    """Return a close frame."""
    payload = struct.pack("!H", code) + clip(reason).encode()
    return _head(_CLOSE, len(payload)) + payload


def encode(lines: list[bytes]) -> bytes:
    """Return one text frame for each of `lines`, which are UTF-8."""
    parts = [b""] * (2 * len(lines))
    parts[0::2] = map(_heads, map(len, lines))
    parts[1::2] = lines
    return b"".join(parts)


@attrs.frozen
class Closed:
    """How a connection ended: the close code that was sent, None where none could be, and its reason."""

    code: int | None
    reason: str


class FrameGuard:
    """Counts a client's frames before the library buffers them.

    A message over `max_message` bytes or in more than `max_frames` frames is named at its first excess byte.
    """

    def __init__(self, max_message: int, max_frames: int) -> None:
        self._max_message = max_message
        self._max_frames = max_frames
        self._head = bytearray()
        self._skip = 0
        self._frames = 0
        self._size = 0
        self.saw_close: bool = False

    def feed(self, data: bytes) -> str | None:
        """Take in bytes of the stream; return what is wrong with the message, where something is."""
        at = 0
        while at < len(data):
            if self._skip:
                step = min(self._skip, len(data) - at)
                self._skip -= step
                at += step
                continue
            self._head.append(data[at])
            at += 1
            if (size := self._payload()) is not None and (wrong := self._frame(size)):
                return wrong
        return None

    def _payload(self) -> int | None:
        """Return the payload's length once the frame's head is whole."""
        head = self._head
        if len(head) < 2:
            return None
        short, mask = head[1] & 127, 4 if head[1] & 128 else 0
        extra = {126: 2, 127: 8}.get(short, 0)
        if len(head) < 2 + extra + mask:
            return None
        return int.from_bytes(head[2 : 2 + extra], "big") if extra else short

    def _frame(self, size: int) -> str | None:
        first = self._head[0]
        self._head.clear()
        self._skip = size
        self.saw_close = self.saw_close or first & 15 == 8
        if first & 8:
            return None
        self._frames += 1
        self._size += size
        if self._size > self._max_message:
            return f"message over {self._max_message} bytes"
        if self._frames > self._max_frames:
            return f"message in more than {self._max_frames} frames"
        if first & 0x80:
            self._frames = self._size = 0
        return None


class Wire(trio.abc.Stream):
    """The connection's bytes: what trio-websocket takes for its stream, and the one write path.

    Resource handling: owns the socket. Error handling: raises what Trio's streams raise; a write that stands still for
    `send_timeout` seconds breaks the connection. A cancelled write leaves its rest to be sent before anything else.
    """

    def __init__(self, sock: socket.socket, handshake: bytes, early: bytes, config: Config) -> None:
        self._socket = sock
        self._handshake = handshake
        self._early = early
        self.accepted: trio.Event = trio.Event()
        self._config = config
        self._guard = FrameGuard(config.max_message, config.max_frames)
        self._lock = trio.StrictFIFOLock()
        self._rest: memoryview | None = None
        self._control: list[bytes] = []
        self._pong: bytes | None = None
        self._closing = False
        self.start_flush: Callable[[], None] = lambda: None
        self.why_closed: Callable[[], Closed | None] = lambda: None
        self.heard: float = trio.current_time()
        self.close_sent: int | None = None
        self.broken: bool = False

    # reading

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Return what the client sent, empty at its end."""
        if self._handshake:
            await trio.lowlevel.checkpoint()
            handshake, self._handshake = self._handshake, b""
            return handshake
        await self.accepted.wait()  # the library looks at nothing that comes before its answer
        data, self._early = self._early, b""
        data = data or await self._receive(max_bytes or RECEIVE_SIZE)
        self.heard = trio.current_time()
        if wrong := self._guard.feed(data):
            self.post(close_frame(CloseCode.TOO_LONG, wrong))
            return b""
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

    async def send_frames(self, frames: bytes) -> None:
        """Send data frames; returns when the kernel has them. No checkpoint where it takes them at once."""
        if self._ready():
            await trio.lowlevel.checkpoint_if_cancelled()
            self._check_writable()
            if (sent := self._try(frames)) == len(frames):
                return
            self._rest = memoryview(frames)[sent:]
            await self.flush()
            return
        async with self._lock:
            await self._drain()
            self._check_writable()
            self._rest = memoryview(frames)
            await self._drain()

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Take a control frame, or the handshake, from trio-websocket; never waits."""
        await trio.lowlevel.checkpoint_if_cancelled()
        self.post(bytes(data))

    def post(self, frame: bytes) -> None:
        """Send a control frame as soon as the frame in progress is out; never waits.

        Raises trio.BrokenResourceError where nothing can be sent any more.
        """
        if self.broken:
            raise trio.BrokenResourceError("the connection is broken")
        if self.close_sent is not None:
            return
        if frame[0] == _PONG:
            self._pong = frame
        else:
            self._control.append(frame)
        if frame[0] == _CLOSE:
            self.close_sent = int.from_bytes(frame[2:4], "big") if len(frame) >= 4 else 1005
        if sum(map(len, self._control)) > NOTICES_LIMIT:
            self.abort()
        elif self._ready():
            self._rest = memoryview(self._take_control())
            self._push()
        if self._rest is not None or self._control or self._pong:
            self.start_flush()

    async def flush(self) -> None:
        """Send everything that waits."""
        async with self._lock:
            await self._drain()

    async def wait_send_all_might_not_block(self) -> None:
        """Return at once: nothing that trio-websocket sends ever waits."""
        await trio.lowlevel.checkpoint()

    def _ready(self) -> bool:
        """Return whether nobody is in the middle of a write."""
        return not self._lock.locked() and self._rest is None

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
            if not (self._control or self._pong):
                return
            self._rest = memoryview(self._take_control())

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
        try:
            with trio.move_on_after(self._config.close_timeout, shield=True) as patience:
                self._say_why()
                await self.flush()
                await self._bid_farewell()
        except (OSError, trio.BrokenResourceError, trio.ClosedResourceError):
            self.broken = True
        if patience.cancelled_caught or self.broken:
            self.abort()
            return
        trio.lowlevel.notify_closing(self._socket)
        self._socket.close()
        self.broken = True

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


Listener = Callable[[str | bytes], None]


class Peer:
    """A connected client.

    Resource handling: lives in the context that `accept` gives, which owns the connection and its tasks. Error
    handling: `send` raises `PeerGone`; all else that goes wrong with the client is told by `on_left`, once.
    """

    def __init__(self, wire: Wire, socket_: WebSocketConnection, config: Config) -> None:
        self._wire = wire
        self._ws = socket_
        self._config = config
        self._listener: Listener | None = None
        self._unheard: list[str | bytes] = []
        self._on_left: Callable[[], None] | None = None
        self._gone = trio.Event()
        self._reason = ""

    def listen(self, on_message: Listener, on_left: Callable[[], None]) -> None:
        """Hear each message, and that the client left. Both are called in the reader and must not wait."""
        self._listener, self._on_left = on_message, on_left
        waiting, self._unheard = self._unheard, []
        for message in waiting:
            on_message(message)
        if self._gone.is_set():
            on_left()

    async def send(self, lines: list[bytes]) -> None:
        """Send each line as a text frame; waits while the client does not read. Raises `PeerGone`."""
        try:
            await self._wire.send_frames(encode(lines))
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise PeerGone(str(error)) from error

    def post(self, text: str) -> None:
        """Say something that must not wait behind data; it goes out when the client takes it."""
        data = text.encode("utf-8", "replace")
        with contextlib.suppress(trio.BrokenResourceError):
            self._wire.post(_head(_TEXT, len(data)) + data)

    async def close(self, code: CloseCode, reason: str) -> None:
        """Close with a code, waiting for the client's answer for at most `close_timeout` seconds, then reset."""
        self._reason = clip(reason)
        with contextlib.suppress(trio.BrokenResourceError):
            self._wire.post(close_frame(code, self._reason))
        with trio.move_on_after(self._config.close_timeout, shield=True) as patience:
            await self._gone.wait()
        if patience.cancelled_caught:
            self._wire.abort()

    def drop(self) -> None:
        """Reset the connection."""
        self._wire.abort()

    @property
    def closed(self) -> Closed:
        """How the connection ended, or would end now."""
        return Closed(self._wire.close_sent, self._reason)

    async def _read(self) -> None:
        """Hear messages until the client is gone."""
        try:
            while True:
                self._hear(await self._ws.get_message())
        except ConnectionClosed:
            self._leave()

    def _hear(self, message: str | bytes) -> None:
        if self._listener:
            self._listener(message)
        elif len(self._unheard) < 8:
            self._unheard.append(message)
        else:
            self._wire.abort()

    def _leave(self) -> None:
        self._gone.set()
        if self._on_left:
            self._on_left()

    async def _beat(self) -> None:
        """Ping a quiet client; drop one that answers nothing. While a write is pending the write's own limit holds."""
        interval, timeout = self._config.ping_interval, self._config.ping_timeout
        while True:
            await trio.sleep_until(self._wire.heard + interval)
            asked = trio.current_time()
            if self._wire.writing:
                await trio.sleep(interval)
            elif asked >= self._wire.heard + interval:
                with contextlib.suppress(trio.BrokenResourceError):
                    self._wire.post(_head(_PING, 0))
                await trio.sleep(timeout)
                if self._wire.heard < asked and not self._wire.writing:
                    self._wire.abort()

    async def _flush(self) -> None:
        """Send what `post` could not send at once."""
        with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            await self._wire.flush()


async def _serve_library(
    wire: Wire, handshake: Handshake, config: Config, task_status: trio.TaskStatus[WebSocketConnection]
) -> None:
    """Run trio-websocket on the wire until its reader ends; whatever it raises ends just this connection."""
    try:
        async with trio.open_nursery() as nursery:
            request = await wrap_server_stream(
                nursery, wire, max_message_size=config.max_message, receive_buffer_size=RECEIVE_SIZE
            )
            ws = await request.accept(subprotocol=handshake.subprotocol)
            wire.accepted.set()
            task_status.started(ws)
    except* Exception:
        wire.abort()


@asynccontextmanager
async def accept(sock: socket.socket, handshake: Handshake, config: Config) -> AsyncIterator[Peer]:
    """Answer a checked handshake and yield the client; leaving the context ends the connection.

    Raises `PeerGone` where the client left before the answer.
    """
    wire = Wire(sock, handshake.data, handshake.early, config)
    try:
        async with open_services() as nursery:
            try:
                ws = await nursery.start(_serve_library, wire, handshake, config)
            except RuntimeError:
                raise PeerGone("the client left in the handshake") from None
            peer = Peer(wire, ws, config)
            wire.start_flush = lambda: nursery.start_soon(peer._flush)
            wire.why_closed = lambda: Closed(ws.closed.code, ws.closed.reason or "") if ws.closed else None
            nursery.start_soon(peer._read)
            nursery.start_soon(peer._beat)
            yield peer
    finally:
        await wire.aclose()
