"""The examples of the original document run as printed: the plain client, the React hook, wscat and the demo page.

The printed files under `node/` are pinned by their digests: what runs here is what the document prints, but for the
port where another program holds it.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
from browser import NODE, PROGRAM_SECONDS, browse, node_environ, run_program, serve_page
from harness import Backend, directive, open_backend

from trio_claude.errors import ConfigError, Reason
from trio_claude.server import Server

BOTH = [pytest.param("fake"), pytest.param("real", marks=pytest.mark.real_cli)]
PRINTED = {
    "original_client.js": "4c93d4b6babff77f80c5cdec41ac68eaa0fb06b9734ade76668e555db51dc91b",
    "original_hook.ts": "b15a4a2a698f7129bccec2fc1107845b2bafc482ae81477705c9589857b3165a",
}
PRINTED_PORT = 3000
PRINTED_MESSAGE = '{"prompt":"...", "meta":"TASK-123"}'
ANSWER = "Hello from stub."
WSCAT_PROMPT = "> "
INFO = '{"info":"send {prompt,meta}"}'


# -- what the examples run with ---------------------------------------------------------------------------------------


def test_the_lock_file_pins_contents_and_names_no_registry() -> None:
    """Whichever registry a machine uses, the packages are these, byte for byte."""
    text = (NODE / "package-lock.json").read_text()
    locked = {name: one for name, one in json.loads(text)["packages"].items() if name}
    assert "resolved" not in text
    assert "registry" not in text
    assert all(one["integrity"].startswith("sha512-") for one in locked.values())


@pytest.fixture(params=BOTH)
async def cli(request: pytest.FixtureRequest, folder: Path) -> AsyncIterator[Backend]:
    async with open_backend(request.param, folder) as backend:
        yield backend


@asynccontextmanager
async def serve_as_printed(backend: Backend, **config: object) -> AsyncIterator[Server]:
    """Serve on the printed port, on another where a program of this machine holds it."""
    async with AsyncExitStack() as stack:
        port = 0 if await _answered("localhost", PRINTED_PORT) else PRINTED_PORT
        try:
            server = await stack.enter_async_context(backend.serve(port=port, **config))
        except ConfigError:
            server = await stack.enter_async_context(backend.serve(port=0, **config))
        yield server


async def _answered(host: str, port: int) -> bool:
    try:
        await (await trio.open_tcp_stream(host, port)).aclose()
    except OSError:
        return False
    return True


def printed(name: str, port: int) -> bytes:
    """Return a printed file, its port replaced by the server's and nothing else."""
    text = (NODE / name).read_bytes()
    assert hashlib.sha256(text).hexdigest() == PRINTED[name], f"{name} is not what the document prints"
    assert text.count(b"ws://localhost:3000/ws/claude") == 1
    return text.replace(b"ws://localhost:3000/ws/claude", b"ws://localhost:%d/ws/claude" % port)


# -- the plain JavaScript client --------------------------------------------------------------------------------------


@pytest.mark.node
async def test_the_plain_client_prints_the_answer(cli: Backend, tmp_path: Path) -> None:
    """The printed client, on Node's own WebSocket, prints the answer's text and nothing else, and ends by itself."""
    client = tmp_path / "client.js"
    async with serve_as_printed(cli) as server:
        client.write_bytes(printed("original_client.js", server.port))
        out, err = await run_program(["node", "--experimental-websocket", client], node_environ(tmp_path))
    assert out == f"Assistant: {ANSWER}\n"
    assert "Error" not in err
    assert [(run.meta, run.outcome.reason) for run in cli.ended] == [("TASK-123", Reason.EXIT)]


# -- the React hook ---------------------------------------------------------------------------------------------------


async def bundle_hook(modules: Path, home: Path, port: int) -> bytes:
    """Bundle the page around the printed hook, to which only the imports and the export are added."""
    hook = home / "hook.ts"
    hook.write_bytes(
        b'import { useCallback, useRef, useState } from "react";\n'
        + printed("original_hook.ts", port)
        + b"\nexport { useClaudeWebSocket };\n"
    )
    command = [modules / ".bin" / "esbuild", NODE / "hook_page.js", f"--alias:original-hook={hook}"]
    options = ["--bundle", "--log-level=warning", '--define:process.env.NODE_ENV="development"']
    script, complaints = await run_program([*command, *options], node_environ(home, modules))
    assert complaints == ""
    return script.encode()


async def use_hook(cli: Backend, modules: Path, home: Path, *prompts: tuple[str, str]) -> dict[str, Any]:
    """Connect the hook with each prompt in turn, in Chromium, from a page that the server was told to let in."""
    page = b'<!doctype html><link rel="icon" href="data:,"><div id="root"></div><script src="/page.js"></script>'
    files = {"/": ("text/html; charset=utf-8", page)}
    async with serve_page(files) as origin, serve_as_printed(cli, allow_origin=(origin,)) as server:
        files["/page.js"] = ("text/javascript; charset=utf-8", await bundle_hook(modules, home, server.port))
        given = [{"prompt": prompt, "meta": meta} for prompt, meta in prompts]
        return await browse(modules, home, "hook", origin, given)


def kinds(frames: list[str]) -> list[str]:
    """Return the types of the frames that have one, `info` for the one that greets."""
    return [said.get("type") or next(iter(said)) for said in map(json.loads, frames)]


@pytest.mark.node
@pytest.mark.browser
async def test_the_hook_gets_the_frames_and_shows_the_connection(cli: Backend, modules: Path, tmp_path: Path) -> None:
    """`handleMessage` gets every frame in order; what React shows follows the connection: open, then closed."""
    seen = await use_hook(cli, modules, tmp_path, ("Hello Claude", "TASK-123"))
    assert seen["errors"] == []
    assert seen["shown"] == ["false", "true", "false"]
    assert seen["frames"][0] == INFO
    assert kinds(seen["frames"]) == ["info", "system", "message", "result"]
    assert json.loads(seen["frames"][2])["content"] == [{"type": "text", "text": ANSWER}]
    assert [(run.meta, run.outcome.reason) for run in cli.ended] == [("TASK-123", Reason.EXIT)]


@pytest.mark.node
@pytest.mark.browser
async def test_a_second_connect_of_the_hook_ends_the_first_run(cli: Backend, modules: Path, tmp_path: Path) -> None:
    """The hook closes its socket before it opens another: that ends the first run, of which nothing is left."""
    slow = directive("slow", n=300, ms=100)
    seen = await use_hook(cli, modules, tmp_path, (slow, "FIRST"), ("Hello Claude", "SECOND"))
    assert seen["errors"] == []
    assert seen["shown"][-1] == "false"
    second = len(seen["frames"]) - 1 - seen["frames"][::-1].index(INFO)
    assert kinds(seen["frames"][:second]) == ["info", "system"]
    assert kinds(seen["frames"][second:]) == ["info", "system", "message", "result"]
    outcomes = [(run.meta, run.outcome.reason, run.outcome.receipt.survivors) for run in cli.ended]
    assert outcomes == [("FIRST", Reason.DISCONNECTED, 0), ("SECOND", Reason.EXIT, 0)]
    assert cli.left() == []


# -- wscat and the demonstration page ---------------------------------------------------------------------------------


@pytest.mark.node
async def test_wscat_shows_the_lines(cli: Backend, modules: Path, tmp_path: Path) -> None:
    """What a person sees who types the printed message into wscat: the greeting, then the lines, then the end."""
    frames: list[str] = []
    async with serve_as_printed(cli) as server, trio.open_nursery() as nursery:
        with trio.fail_after(PROGRAM_SECONDS):
            wscat = await nursery.start(
                partial(
                    trio.run_process,
                    [str(modules / ".bin" / "wscat"), "-c", f"ws://localhost:{server.port}/ws/claude"],
                    env=node_environ(tmp_path),
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                )
            )
            rest = b""
            async with wscat.stdin, wscat.stdout:
                async for data in wscat.stdout:
                    if not frames:
                        await wscat.stdin.send_all(f"{PRINTED_MESSAGE}\n".encode())
                    *lines, rest = (rest + data).split(b"\n")
                    frames += [line.decode().removeprefix(WSCAT_PROMPT) for line in lines]
            assert await wscat.wait() == 0
    assert rest == b""
    assert frames[0] == INFO
    assert kinds(frames) == ["info", "system", "message", "result"]
    assert json.loads(frames[2])["content"] == [{"type": "text", "text": ANSWER}]
    assert [(run.meta, run.outcome.reason) for run in cli.ended] == [("TASK-123", Reason.EXIT)]


@pytest.mark.node
@pytest.mark.browser
async def test_the_demo_page_sends_a_prompt_and_shows_the_answer(cli: Backend, modules: Path, tmp_path: Path) -> None:
    """The page works under its own policy: the form sends, answer and receipt are shown, nothing is refused."""
    async with serve_as_printed(cli) as server:
        given = {"prompt": "Hello from the page", "meta": "PAGE-1"}
        seen = await browse(modules, tmp_path, "demo", f"{server.url}/ws-demo.html", given)
    assert seen["errors"] == []
    assert seen["title"] == "trio-claude"
    assert seen["answer"].strip() == ANSWER
    assert seen["state"] == "ended: exit 0"
    assert "1 process, 0 left" in seen["receipt"]
    beside = ("gateway", "stream_event", "command_lifecycle")  # the last: what becomes of a message, by the real CLI
    said = [kind for kind in kinds(seen["frames"]) if kind not in beside]
    assert [said[0], *said[-2:]] == ["system", "assistant", "result"]
    assert (seen["canSend"], seen["canStop"]) == (True, False)
    assert [(run.meta, run.outcome.reason) for run in cli.ended] == [("PAGE-1", Reason.EXIT)]
