"""trio-websocket as its documentation shows it: `serve_websocket`, and `send_message` for each line."""

from __future__ import annotations

import subprocess
from functools import partial

import trio
from contract import CLI, FLAGS, INFO, PATH, PORT, raise_descriptor_limit, user_line
from trio_websocket import ConnectionClosed, WebSocketConnection, WebSocketRequest, serve_websocket


async def hear_leaving(socket: WebSocketConnection, scope: trio.CancelScope) -> None:
    """End the run when the client leaves."""
    try:
        while True:
            await socket.get_message()
    except ConnectionClosed:
        scope.cancel()


async def send_lines(child: trio.Process, socket: WebSocketConnection) -> None:
    """Send each line of the child."""
    rest = b""
    async for chunk in child.stdout:
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            await socket.send_message(line.decode())
    if rest:
        await socket.send_message(rest.decode())


async def run(socket: WebSocketConnection, line: bytes) -> int:
    """Run the child; return the close code."""
    start = partial(
        trio.run_process, [CLI, *FLAGS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        check=False,
    )  # fmt: skip
    status = 0
    async with trio.open_nursery() as nursery:
        child = await nursery.start(start)
        nursery.start_soon(hear_leaving, socket, nursery.cancel_scope)
        async with child.stdin:
            await child.stdin.send_all(line)
        await send_lines(child, socket)
        status = await child.wait()
        nursery.cancel_scope.cancel()
    return 1011 if status else 1000


async def handle(request: WebSocketRequest) -> None:
    """Serve one client."""
    if request.path.partition("?")[0] != PATH:
        return await request.reject(404)
    socket = await request.accept()
    try:
        await socket.send_message(INFO)
        try:
            line = user_line(await socket.get_message())
        except ValueError as error:
            return await socket.aclose(1008, str(error))
        await socket.aclose(await run(socket, line))
    except* ConnectionClosed:
        pass


raise_descriptor_limit()
trio.run(partial(serve_websocket, handle, "127.0.0.1", PORT, ssl_context=None))
