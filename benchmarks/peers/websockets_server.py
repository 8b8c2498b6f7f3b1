"""The `websockets` package on asyncio: a send for each line, with its own backpressure."""

from __future__ import annotations

import asyncio

from child_asyncio import first_of, relay
from contract import INFO, PATH, PORT, raise_descriptor_limit, user_line
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed


async def handle(connection: ServerConnection) -> None:
    """Serve one client."""
    if connection.request.path.partition("?")[0] != PATH:
        return await connection.close(1008)
    try:
        await connection.send(INFO)
        try:
            line = user_line(await connection.recv())
        except ValueError as error:
            return await connection.close(1008, str(error))
        code = await first_of(relay(line, connection.send), connection.wait_closed())
        await connection.close(code or 1000)
    except ConnectionClosed:
        pass


async def main() -> None:
    """Serve for ever."""
    raise_descriptor_limit()
    async with serve(handle, "127.0.0.1", PORT, compression=None, backlog=1024):
        await asyncio.get_running_loop().create_future()


asyncio.run(main())
