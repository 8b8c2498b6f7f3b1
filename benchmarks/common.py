"""What the benchmarks share: a server in a process of its own, raw clients, and figures."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import attrs
import trio

HERE = Path(__file__).parent
HANDSHAKE = (
    "GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==\r\n\r\n"
)


@attrs.define
class Subject:
    """A server under measurement."""

    process: trio.Process
    port: int
    log: Path

    def rss(self) -> int:
        """Return its resident memory in KiB."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.partition("VmRSS:")[2].split()[0])

    def cpu(self) -> float:
        """Return the CPU seconds that it has used."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def events(self, name: str) -> list[dict[str, object]]:
        """Return what it logged under `name`."""
        events = [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]
        return [event for event in events if event["event"] == name]


def python_child(folder: Path, name: str) -> Path:
    """Write a program that is one of the children here; return its path."""
    program = folder / name
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -I -S "{HERE / "children" / name}.py"\n')
    program.chmod(0o755)
    return program


@asynccontextmanager
async def serving(*words: str, cli: str | None = None) -> AsyncIterator[Subject]:
    """Run `trio-claude serve` on a free port; `cli` names a child of this folder."""
    with tempfile.TemporaryDirectory(prefix="tcb-") as name:
        folder = Path(name)
        more = ["--cli", str(python_child(folder, cli))] if cli else []
        with (folder / "log").open("wb") as log:
            process = await trio.lowlevel.open_process(
                [sys.executable, "-m", "trio_claude", "serve", "--port", "0", *more, *words],
                stdout=subprocess.PIPE, stderr=log, cwd=folder,
            )  # fmt: skip
            try:
                told = b""
                while not told.endswith(b"\n"):
                    told += await process.stdout.receive_some()
                yield Subject(process, int(told.rpartition(b":")[2]), folder / "log")
            finally:
                process.terminate()
                with trio.CancelScope(shield=True):
                    await process.wait()
                    await process.stdout.aclose()


def masked(opcode: int, payload: bytes) -> bytes:
    """Return a client's frame."""
    size = len(payload)
    length = bytes((0x80 | size,)) if size < 126 else bytes((0x80 | 126,)) + size.to_bytes(2, "big")
    return bytes((0x80 | opcode,)) + length + b"\0\0\0\0" + payload


def masked_text(message: dict[str, object]) -> bytes:
    """Return a message as a client's text frame."""
    return masked(1, json.dumps(message).encode())


def split_frames(data: bytes) -> tuple[list[tuple[int, bytes]], bytes]:
    """Return the whole frames of a server in `data`, each with its opcode, and the rest."""
    frames, at = [], 0
    while len(data) >= at + 2:
        size, begin = data[at + 1] & 0x7F, at + 2
        if size >= 126:
            begin += 2 if size == 126 else 8
            size = int.from_bytes(data[at + 2 : begin], "big")
        if len(data) < begin + size:
            break
        frames.append((data[at] & 0x0F, data[begin : begin + size]))
        at = begin + size
    return frames, data[at:]


async def open_socket(
    port: int, path: str = "/ws/claude?frames=verbatim", headers: str = ""
) -> tuple[trio.SocketStream, bytes]:
    """Open a WebSocket by hand; return it and what came behind the head. Raises OSError.

    `headers` are further ones, each with the end of its line.
    """
    stream = await trio.open_tcp_stream("127.0.0.1", port)
    try:
        asked = HANDSHAKE.format(path=path, port=port).removesuffix("\r\n")
        await stream.send_all(f"{asked}{headers}\r\n".encode())
        head = b""
        while b"\r\n\r\n" not in head:
            head += (chunk := await stream.receive_some())
            if not chunk:
                raise ConnectionError("refused")
        if not head.startswith(b"HTTP/1.1 101 "):
            raise ConnectionError(head.partition(b"\r\n")[0].decode())
    except BaseException:  # cancelled too; raised again
        stream.socket.close()
        raise
    return stream, head.partition(b"\r\n\r\n")[2]


async def connect(port: int, path: str = "/ws/claude?frames=verbatim") -> trio.SocketStream:
    """Open a WebSocket by hand and read to behind the info frame."""
    stream, rest = await open_socket(port, path)
    while b"prompt,meta}" not in rest:
        rest += (chunk := await stream.receive_some())
        if not chunk:
            raise ConnectionError("refused")
    return stream


def prompt(text: str) -> bytes:
    """Return a prompt's frame."""
    return masked_text({"prompt": text, "meta": "BENCH"})


def percentile(values: Sequence[float], share: float) -> float:
    """Return a percentile of `values`."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


def median(values: Sequence[float]) -> float:
    """Return the median."""
    return statistics.median(values)


def machine() -> str:
    """Return what a figure needs beside it."""
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    system = f"{platform.system()} {platform.release()}"
    return f"{os.cpu_count()} cores, Python {platform.python_version()}, {system}, load {load}"
