"""A WebSocket client for few connections, in Python: its frames with the times at which they came.

It must never wait without a bound.
"""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator

import attrs
from common import HANDSHAKE, masked

from .load import Lost

CHUNK = 1 << 16


@attrs.frozen
class Frame:
    """A text frame; `at` is CLOCK_MONOTONIC in nanoseconds."""

    data: bytes
    at: int


class Client:
    """One connection that has had its info frame; it has `bound` seconds for each read."""

    def __init__(self, port: int, path: str, bound: float = 60.0) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), bound)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket.sendall(HANDSHAKE.format(path=path, port=port).encode())
        self._buffer = b""
        while b"\r\n\r\n" not in self._buffer:
            self._read()
        _, _, self._buffer = self._buffer.partition(b"\r\n\r\n")
        self._frame()

    def ask(self, prompt: str, **options: object) -> int:
        """Send a prompt; return when."""
        message = masked(1, json.dumps({"prompt": prompt, "meta": "BENCH", **options}).encode())
        at = time.monotonic_ns()
        self._socket.sendall(message)
        return at

    def frames(self) -> Iterator[Frame]:
        """Return all frames until the close. Raises Lost where the close is not one of success."""
        with self._socket:
            while True:
                opcode, data, at = self._frame()
                if opcode == 8:
                    self._socket.sendall(masked(8, data[:2]))
                    if int.from_bytes(data[:2], "big") != 1000:
                        raise Lost(f"closed: {data!r}")
                    return
                if opcode == 9:
                    self._socket.sendall(masked(10, data))
                elif opcode == 1:
                    yield Frame(data, at)

    def _read(self) -> int:
        chunk = self._socket.recv(CHUNK)
        if not chunk:
            raise Lost("the server hung up")
        self._buffer += chunk
        return time.monotonic_ns()

    def _frame(self) -> tuple[int, bytes, int]:
        at = time.monotonic_ns()
        while (found := _parsed(self._buffer)) is None:
            at = self._read()
        opcode, data, size = found
        self._buffer = self._buffer[size:]
        return opcode, data, at


def _parsed(buffer: bytes) -> tuple[int, bytes, int] | None:
    """Return the opcode, the data and the whole size of the frame in front, if it is all there."""
    if len(buffer) < 2:
        return None
    start = {126: 4, 127: 10}.get(buffer[1], 2)
    size = buffer[1] if start == 2 else int.from_bytes(buffer[2:start], "big")
    if len(buffer) < start or len(buffer) < start + size:
        return None
    return buffer[0] & 15, buffer[start : start + size], start + size
