"""Node programs and a real Chromium, with nothing of the user's."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import trio
from harness import Listening

NODE = Path(__file__).parents[1] / "node"
WEB = Path(__file__).parents[2] / "trio_claude" / "web"
CLIENT = WEB / "dist" / "client.js"
PROGRAM_SECONDS = 90
"""More than the browser's own patience, so that it is the one to say what it waited for."""
INSTALL_SECONDS = 300
OFFLINE = ("ENOTFOUND", "EAI_AGAIN", "ECONNREFUSED", "ECONNRESET", "ETIMEDOUT", "ENETUNREACH")
"""What npm says where there is no network."""


def install_modules(source: Path = NODE) -> Path:
    """Return the npm packages of a folder's lock file, installed once outside of the tree and kept for the next session."""
    lock = hashlib.sha256(b"".join((source / name).read_bytes() for name in ("package.json", "package-lock.json")))
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "trio-claude-tests"
    home = cache / lock.hexdigest()[:16]
    if not home.is_dir():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as staging:
            trio.run(_install, source, Path(staging) / "packages")
            with suppress(OSError):  # another session was first
                (Path(staging) / "packages").rename(home)
    return home / "node_modules"


async def _install(source: Path, folder: Path) -> None:
    """Install the packages. A machine without a network skips the test; in CI that is a failure."""
    folder.mkdir()
    for name in ("package.json", "package-lock.json"):
        shutil.copy(source / name, folder)
    with trio.fail_after(INSTALL_SECONDS):
        done = await trio.run_process(
            ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"],
            cwd=folder,
            check=False,
            capture_stdout=True,
            capture_stderr=True,
        )
    if done.returncode:
        said = done.stderr.decode(errors="replace")
        if os.environ.get("CI") != "true" and any(word in said for word in OFFLINE):
            pytest.skip("npm can't reach its registry")
        pytest.fail(f"npm ci failed: {said}")


def node_environ(home: Path, modules: Path | None = None) -> dict[str, str]:
    """Return an environment with nothing of the user's."""
    environ = {"PATH": os.environ["PATH"], "HOME": str(home)}
    return environ | ({"NODE_PATH": str(modules)} if modules else {})


async def run_program(command: list[str | Path], environ: Mapping[str, str]) -> tuple[str, str]:
    """Run a program to its good end; return what it wrote to stdout and stderr."""
    with trio.fail_after(PROGRAM_SECONDS):
        done = await trio.run_process(
            [str(word) for word in command], env=environ, check=False, capture_stdout=True, capture_stderr=True
        )
    assert done.returncode == 0, done.stderr.decode(errors="replace")
    return done.stdout.decode(), done.stderr.decode(errors="replace")


async def play(server: Listening | str, folder: Path, scene: str, prompt: str = "hello", **more: object) -> Any:
    """Play a scene of `js_client.mjs` in Node."""
    url = server if isinstance(server, str) else f"http://127.0.0.1:{server.port}"
    given = json.dumps({"url": url, "prompt": prompt, **more})
    command: list[str | Path] = ["node", "--experimental-websocket", NODE / "js_client.mjs", CLIENT, scene, given]
    seen, _ = await run_program(command, node_environ(folder))
    return json.loads(seen)


async def browse(modules: Path, home: Path, scene: str, url: str, given: object) -> dict[str, Any]:
    """Play a scene of `browser.cjs` in Chromium with a profile of its own; return what was seen."""
    chromium = shutil.which("chromium")
    assert chromium
    profile = home / "profile"
    command: list[str | Path] = ["node", NODE / "browser.cjs", chromium, profile, scene, url, json.dumps(given)]
    seen, _ = await run_program(command, node_environ(home, modules))
    return json.loads(seen)


@asynccontextmanager
async def serve_page(files: Mapping[str, tuple[str, bytes]]) -> AsyncIterator[str]:
    """Serve files to a browser from an origin of their own, as an application's dev server would; yield the origin."""

    async def answer(stream: trio.SocketStream) -> None:
        head = b""
        with suppress(trio.BrokenResourceError):
            while b"\r\n\r\n" not in head:
                if not (data := await stream.receive_some()):
                    return
                head += data
            kind, body = files.get(head.split()[1].decode(), ("text/plain", b""))
            lines = f"Content-Type: {kind}\r\nContent-Length: {len(body)}\r\nConnection: close"
            await stream.send_all(f"HTTP/1.1 200 OK\r\n{lines}\r\n\r\n".encode() + body)

    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, answer, listeners)
        yield f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}"
        nursery.cancel_scope.cancel()
