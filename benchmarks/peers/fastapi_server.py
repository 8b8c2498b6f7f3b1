"""FastAPI on uvicorn, one worker, uvloop: `send_text` for each line."""

from __future__ import annotations

import uvicorn
from child_asyncio import first_of, relay
from contract import INFO, PATH, PORT, raise_descriptor_limit, user_line
from fastapi import FastAPI, WebSocket, WebSocketDisconnect

app = FastAPI()


async def hear_leaving(socket: WebSocket) -> None:
    """Return when the client has left."""
    while (await socket.receive())["type"] != "websocket.disconnect":
        pass


@app.websocket(PATH)
async def claude(socket: WebSocket) -> None:
    """Serve one client."""
    await socket.accept()
    await socket.send_text(INFO)
    try:
        line = user_line(await socket.receive_text())
    except ValueError as error:
        await socket.close(1008, str(error))
        return
    except WebSocketDisconnect:
        return
    try:
        code = await first_of(relay(line, socket.send_text), hear_leaving(socket))
    except WebSocketDisconnect:
        return
    if isinstance(code, int):
        await socket.close(code)


raise_descriptor_limit()
uvicorn.run(
    app, host="127.0.0.1", port=PORT, log_level="critical", loop="uvloop", ws_per_message_deflate=False, backlog=1024
)
