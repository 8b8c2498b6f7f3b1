"""A real nginx before a server, as docs/howto/nginx.md has it, without TLS and on other ports."""

from __future__ import annotations

import shutil
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import trio
from harness import until
from samples import blocks

PAGE = Path(__file__).parents[2] / "docs" / "howto" / "nginx.md"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


@asynccontextmanager
async def open_nginx(folder: Path, port: int, server: int, place: str = "/") -> AsyncIterator[None]:
    """Have nginx hand on from `port`, below the path `place`, to the server's port."""
    (block,) = [one for one in blocks(PAGE) if one.language == "nginx"]
    (folder / "nginx.conf").write_text(_without_tls(block.text, port, server, place))
    more = ["-p", str(folder), "-c", "nginx.conf", "-e", "error.log", "-g", "daemon off;"]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(partial(trio.run_process, [shutil.which("nginx") or "nginx", *more], check=False))
        await until(lambda: (folder / "nginx.pid").exists())
        yield
        nursery.cancel_scope.cancel()


def _without_tls(text: str, port: int, server: int, place: str) -> str:
    """Return nginx's whole configuration, with the one of the page inside."""
    lines = [line for line in text.splitlines() if "ssl_certificate" not in line]
    inner = "\n".join(lines).replace("443 ssl", f"127.0.0.1:{port}").replace("127.0.0.1:3000", f"127.0.0.1:{server}")
    if place != "/":  # as the page says
        inner = inner.replace("location / {", f"location {place} {{").replace(f":{server};", f":{server}/;")
        assert f"location {place} {{" in inner
    assert f":{port};" in inner
    assert f":{server}" in inner
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    places = "".join(f"{kind}_temp_path temp-{kind};" for kind in kinds)
    return f"pid nginx.pid; events {{}} http {{ access_log off; {places}\n{inner} }}"
