"""WebSocket frames: ours as bytes, a client's counted. Pure: no socket, no wait."""

from __future__ import annotations

import re
import struct
from typing import Final

from ..messages import clip

KEPT_HEADS: Final = 65536
"""Frame heads of lengths below this are kept for the next frame of that length (at most 4 MiB of them)."""
FRAMES_A_TURN: Final = 32
"""A client's frames that are looked at before other tasks get their turn."""
FLOOD: Final = 17
"""Pings on end of which only the last is heard (RFC 6455, section 5.5.3); a read can have 10,000."""
TEXT, CLOSE, PING, PONG = 0x81, 0x88, 0x89, 0x8A
"""First bytes of whole frames."""


_PING = b"|".join(re.escape(bytes((0x80 | size,))) + b".{%d}" % (4 + size) for size in range(126))
_PINGS = re.compile(rb"(\x89(?:%s)){%d,}+" % (_PING, FLOOD), re.DOTALL)
"""A flood of whole masked pings; the group is its last."""


class _Heads(dict[int, bytes]):
    """Frame heads of text frames by length; those that recur are kept."""

    def __missing__(self, size: int) -> bytes:
        found = head(TEXT, size)
        if size < KEPT_HEADS:
            self[size] = found
        return found


def head(opcode: int, size: int) -> bytes:
    """Return the head of an unmasked frame."""
    if size < 126:
        return bytes((opcode, size))
    return struct.pack("!BBH", opcode, 126, size) if size < 65536 else struct.pack("!BBQ", opcode, 127, size)


_heads = _Heads().__getitem__


def close_frame(code: int, reason: str) -> bytes:
    """Return a close frame."""
    payload = struct.pack("!H", code) + clip(reason).encode()
    return head(CLOSE, len(payload)) + payload


def encode(lines: list[bytes]) -> bytes:
    """Return one text frame for each of `lines`, which are UTF-8."""
    if len(lines) == 1:
        return _heads(len(lines[0])) + lines[0]
    parts = [b""] * (2 * len(lines))
    parts[0::2] = map(_heads, map(len, lines))
    parts[1::2] = lines
    return b"".join(parts)


def _without(data: bytes, gaps: list[tuple[int, int]]) -> bytes:
    """Return `data` without the bytes in `gaps`, which are in order."""
    ends = [0, *(end for _, end in gaps)]
    starts = [*(start for start, _ in gaps), len(data)]
    return b"".join(data[end:start] for end, start in zip(ends, starts, strict=True))


class FrameGuard:
    """Counts a client's frames before the library buffers them.

    `wrong` names a message over `max_message` bytes, which may be raised, or in more than `max_frames` frames, at its
    first excess byte.
    """

    def __init__(self, max_message: int, max_frames: int) -> None:
        self.max_message: int = max_message
        self._max_frames = max_frames
        self._head = bytearray()
        self._skip = 0
        self._frames = 0
        self._size = 0
        self.saw_close: bool = False
        self.wrong: str | None = None

    def feed(self, data: bytes) -> tuple[int, bytes]:
        """Take in bytes of the stream, of at most `FRAMES_A_TURN` frames.

        Return how many bytes those are, and what of them is to be heard: of a flood of pings only the last.
        """
        at = frames = 0
        gaps: list[tuple[int, int]] = []
        while at < len(data) and frames < FRAMES_A_TURN and not self.wrong:
            if self._skip:
                step = min(self._skip, len(data) - at)
                self._skip -= step
                at += step
                continue
            if not self._head and data[at] == PING and (flood := _PINGS.match(data, at)):
                gaps.append((at, flood.start(1)))
                at = flood.start(1)
            self._head.append(data[at])
            at += 1
            if (size := self._payload()) is not None:
                self._frame(size)
                frames += 1
        return at, _without(data[:at], gaps) if gaps else data[:at]

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

    def _frame(self, size: int) -> None:
        first = self._head[0]
        self._head.clear()
        self._skip = size
        self.saw_close = self.saw_close or first & 15 == 8
        if first & 8:
            return
        self._frames += 1
        self._size += size
        if self._size > self.max_message:
            self.wrong = f"message over {self.max_message} bytes"
        elif self._frames > self._max_frames:
            self.wrong = f"message in more than {self._max_frames} frames"
        elif first & 0x80:
            self._frames = self._size = 0
