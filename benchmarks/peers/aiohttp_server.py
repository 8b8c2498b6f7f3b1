"""aiohttp on asyncio: `send_str` for each line."""

from __future__ import annotations

from aiohttp import WSMsgType, web
from child_asyncio import first_of, relay
from contract import INFO, PATH, PORT, raise_descriptor_limit, user_line


async def hear_leaving(socket: web.WebSocketResponse) -> None:
    """Return when the client has left."""
    async for _ in socket:
        pass


async def claude(request: web.Request) -> web.WebSocketResponse:
    """Serve one client."""
    socket = web.WebSocketResponse(compress=False)
    await socket.prepare(request)
    await socket.send_str(INFO)
    message = await socket.receive()
    if message.type is not WSMsgType.TEXT:
        return socket
    try:
        line = user_line(message.data)
    except ValueError as error:
        await socket.close(code=1008, message=str(error).encode())
        return socket
    code = await first_of(relay(line, socket.send_str), hear_leaving(socket))
    await socket.close(code=code or 1000)
    return socket


raise_descriptor_limit()
app = web.Application()
app.router.add_get(PATH, claude)
web.run_app(app, host="127.0.0.1", port=PORT, print=None, access_log=None, backlog=1024)
