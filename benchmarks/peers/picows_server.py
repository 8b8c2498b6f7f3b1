"""picows on uvloop, as its makers advise for speed: a listener class, lines sent as bytes, the pipe as a protocol.

It reads the child's stdout by a subprocess protocol, sends the lines of a read one by one (picows writes each at once)
and pauses the pipe while the socket's buffer is full.
"""

from __future__ import annotations

import asyncio

import uvloop
from contract import CLI, FLAGS, INFO, PATH, PORT, raise_descriptor_limit, user_line
from picows import WSCloseCode, WSFrame, WSListener, WSMsgType, WSTransport, WSUpgradeRequest, ws_create_server


class Child(asyncio.SubprocessProtocol):
    """The child's end: its lines go to the client as they come."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.transport: asyncio.SubprocessTransport | None = None
        self.rest = b""

    def connection_made(self, transport: asyncio.SubprocessTransport) -> None:  # type: ignore[override]
        """Keep the transport."""
        self.transport = transport

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        """Send the lines which are whole."""
        lines = (self.rest + data).split(b"\n") if self.rest else data.split(b"\n")
        self.rest = lines.pop()
        send = self.session.transport.send
        for line in lines:
            send(WSMsgType.TEXT, line)

    def process_exited(self) -> None:
        """Wait for the pipe's end, too: `connection_lost` comes behind both."""

    def connection_lost(self, exc: Exception | None) -> None:
        """Close the socket as the child has ended."""
        if self.rest:
            self.session.transport.send(WSMsgType.TEXT, self.rest)
        failed = self.transport.get_returncode()
        self.session.transport.send_close(WSCloseCode.INTERNAL_ERROR if failed else WSCloseCode.OK)

    def pause(self, *, pause: bool) -> None:
        """Stop reading the pipe, or go on."""
        pipe = self.transport.get_pipe_transport(1) if self.transport else None
        if pipe and not pipe.is_closing():
            (pipe.pause_reading if pause else pipe.resume_reading)()

    def kill(self) -> None:
        """End the child."""
        if self.transport and self.transport.get_returncode() is None:
            self.transport.kill()


class Session(WSListener):
    """One client."""

    def on_ws_connected(self, transport: WSTransport) -> None:
        """Say the info frame."""
        self.transport = transport
        self.child: Child | None = None
        transport.send(WSMsgType.TEXT, INFO.encode())

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        """Take the prompt, or the close."""
        if frame.msg_type == WSMsgType.CLOSE:
            transport.send_close(frame.get_close_code(), frame.get_close_message())
            transport.disconnect()
        elif frame.msg_type == WSMsgType.TEXT and self.child is None:
            try:
                line = user_line(frame.get_payload_as_bytes())
            except ValueError as error:
                transport.send_close(WSCloseCode.POLICY_VIOLATION, str(error).encode())
            else:
                self.child = Child(self)
                self.starting = asyncio.get_running_loop().create_task(self.start(line))

    async def start(self, line: bytes) -> None:
        """Start the child with its line."""
        loop = asyncio.get_running_loop()
        made, _ = await loop.subprocess_exec(lambda: self.child, CLI, *FLAGS, stderr=None)
        stdin = made.get_pipe_transport(0)
        stdin.write(line)
        stdin.close()

    def pause_writing(self) -> None:
        """Hear that the socket is full."""
        if self.child:
            self.child.pause(pause=True)

    def resume_writing(self) -> None:
        """Hear that the socket has room."""
        if self.child:
            self.child.pause(pause=False)

    def on_ws_disconnected(self, transport: WSTransport) -> None:
        """End the child as its client has left."""
        if self.child:
            self.child.kill()


def listener(request: WSUpgradeRequest) -> WSListener | None:
    """Return a listener for a request to our path."""
    return Session() if request.path.partition(b"?")[0] == PATH.encode() else None


async def main() -> None:
    """Serve for ever."""
    raise_descriptor_limit()
    server = await ws_create_server(listener, "127.0.0.1", PORT, backlog=1024)
    await server.serve_forever()


uvloop.run(main())
