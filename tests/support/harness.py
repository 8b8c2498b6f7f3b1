"""What the tests share: servers with a fake or the real CLI, raw clients, and looks at what is left."""

from __future__ import annotations

import base64
import importlib.util
import json
import os
import resource
import secrets
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, Protocol

import attrs
import contract
import pytest
import trio
from trio_websocket import ConnectionClosed, WebSocketConnection, open_websocket_url

from trio_claude.config import Config
from trio_claude.events import Event, RunEnded
from trio_claude.identity.keys import Key, digest, new_secret, write_keys
from trio_claude.server import Server, open_server
from trio_claude.testing import fake_cli
from trio_claude.testing.messages_api import MessagesApi, open_messages_api

MODES = ["supervisor", pytest.param("namespace", marks=pytest.mark.namespace)]
"""The containments of which everything is promised."""
QUIET = {
    "DISABLE_TELEMETRY": "1",
    "DISABLE_AUTOUPDATER": "1",
    "DISABLE_ERROR_REPORTING": "1",
    "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
}
FAKE_ENV = {"PATH": os.environ["PATH"], "HOME": "/nonexistent"}


KEY = base64.b64encode(b"0123456789abcdef").decode()
UPGRADE = {
    "host": "localhost:3000", "upgrade": "websocket", "connection": "keep-alive, Upgrade", "sec-websocket-version": "13",
    "sec-websocket-key": KEY,
}  # fmt: skip


def head(path: str = "/ws/claude", method: str = "GET", **changed: str | None) -> bytes:
    """Return a handshake, changed here and there."""
    headers = {**UPGRADE, **{name.replace("_", "-"): value for name, value in changed.items()}}
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items() if value is not None)]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n"


def directive(do: str, **more: object) -> str:
    """Return a prompt that tells the fake CLI, or the API stub behind the real one, what to do."""
    return f"@@{json.dumps({'do': do, **more})}@@"


def real_cli() -> Path | None:
    spec = importlib.util.find_spec("claude_agent_sdk")
    for folder in (spec and spec.submodule_search_locations) or ():
        if (program := Path(folder) / "_bundled" / "claude").is_file():
            return program
    return None


def fake_program(folder: Path) -> Path:
    program = folder / "fake-claude"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -I -S "{fake_cli.FOLDER}" "$@"\n')
    program.chmod(0o755)
    return program


def script_cli(folder: Path, text: str) -> str:
    """Return a program that stands in for the CLI."""
    program = folder / "script-cli"
    program.write_text(f"#!/bin/sh\n{text}\n")
    program.chmod(0o755)
    return str(program)


OWN_RESULT = '{"type":"result","result":"nobody\'s","origin":{"kind":"task-notification"},"session_id":"s"}\n'
"""The result of a turn that the CLI has begun by itself."""
_NAMES = """
name() { IFS= read -r line; name=${line##*'"uuid":"'}; name=${name%%'"'*}; }
result() { echo '{"type":"result","result":"'"$1"'","user_message_uuids":['"$2"'],"session_id":"s"}'; }
says() { echo '{"type":"assistant","message":{"content":[]}}'; }
name; first=$name; says
"""
NAMES_BOTH = f"""{_NAMES}
name
result both '"'"$first"'","'"$name"'"'
cat >/dev/null
"""
"""A CLI that takes a second message into the turn that it is at."""
NAMES_EACH = f"""{_NAMES}
result one '"'"$first"'"'
name; says
result two '"'"$name"'"'
cat >/dev/null
"""
"""A CLI that answers each message in a turn of its own."""


@attrs.define
class Backend:
    """A CLI for the server under test."""

    name: str
    program: str
    environ: dict[str, str]
    cwd: Path
    api: MessagesApi | None = None
    events: list[Event] = attrs.Factory(list)
    mark: str = attrs.Factory(lambda: secrets.token_hex(8))
    tracer_provider: Any = None

    @asynccontextmanager
    async def serve(self, **config: object) -> AsyncIterator[Server]:
        settings = Config(**{"port": 0, "cli": self.program, "cwd": str(self.cwd), **config})
        settings = attrs.evolve(settings, env=(*settings.env, "TCT_BACKEND"))
        environ = {**self.environ, "TCT_BACKEND": self.mark}
        async with open_server(
            settings, [self.events.append], environ=environ, tracer_provider=self.tracer_provider
        ) as server:
            yield server
            await server.drain(0)

    @asynccontextmanager
    async def serve_known(self, *names: str, **config: object) -> AsyncIterator[tuple[Server, dict[str, str]]]:
        """Serve those who have a key; yield the server and the keys by name. `NAME/ROLE` says the role."""
        secrets = {name.partition("/")[0]: new_secret() for name in names}
        roles = {name.partition("/")[0]: name.partition("/")[2] or "user" for name in names}
        path = self.cwd.parent / "keys.json"
        write_keys(path, {name: Key(digest(secret), roles[name]) for name, secret in secrets.items()})
        own = {"keys": str(path), "cwd": "", "state": str(self.cwd.parent / "state"), **config}
        async with self.serve(**own) as server:
            yield server, secrets

    def left(self) -> list[int]:
        """Return the processes of all runs so far that still exist, but for those that cleared their environment."""
        return bearing(f"TCT_BACKEND={self.mark}")

    @property
    def ended(self) -> list[RunEnded]:
        return [event for event in self.events if isinstance(event, RunEnded)]


@asynccontextmanager
async def open_backend(name: str, folder: Path) -> AsyncIterator[Backend]:
    """Open the `fake` or the `real` CLI; the real one gets an API stub and a home of its own."""
    cwd = folder / "work"
    cwd.mkdir()
    if name == "fake":
        yield Backend("fake", str(fake_program(folder)), dict(FAKE_ENV), cwd)
        return
    async with open_messages_api() as api:
        environ = {
            "PATH": os.environ["PATH"],
            "HOME": str(folder),
            "CLAUDE_CONFIG_DIR": str(folder / "config"),
            "ANTHROPIC_BASE_URL": api.url,
            "ANTHROPIC_API_KEY": "dummy",
            **QUIET,
        }
        yield Backend("real", str(real_cli()), environ, cwd, api)


@attrs.frozen
class Said:
    """All that a client was told."""

    frames: list[str]
    code: int
    reason: str

    @property
    def objects(self) -> list[dict[str, object]]:
        return [json.loads(frame) for frame in self.frames]

    def of_type(self, kind: str) -> list[dict[str, object]]:
        return [said for said in self.objects if said.get("type") == kind]

    @property
    def errors(self) -> list[dict[str, object]]:
        return [said for said in self.objects if "error" in said and "type" not in said]


class Listening(Protocol):
    """What a client needs of a server."""

    @property
    def port(self) -> int: ...


def bearer(key: str | None, **more: str) -> list[tuple[bytes, bytes]]:
    """Return the headers that carry a key, and more."""
    headers = {**({"Authorization": f"Bearer {key}"} if key else {}), **more}
    return [(name.encode(), value.encode()) for name, value in headers.items()]


@asynccontextmanager
async def connect(
    server: Listening, query: str = "", key: str | None = None, **headers: str
) -> AsyncIterator[WebSocketConnection]:
    async with open_websocket_url(
        f"ws://127.0.0.1:{server.port}/ws/claude{query}",
        max_message_size=2**27,
        message_queue_size=10000,
        extra_headers=bearer(key, **headers),
    ) as socket:
        try:
            yield socket
        finally:
            await socket.aclose()
            await socket._stream.aclose()  # the library's client leaves it open after a close from the server


async def listen(socket: WebSocketConnection, frames: list[str] | None = None) -> Said:
    """Read to the close."""
    frames = [] if frames is None else frames
    try:
        while True:
            frames.append(await socket.get_message())
            contract.check_frame(frames[-1])
    except ConnectionClosed as end:
        contract.check_close("claude", end.reason.code)
        return Said(frames, end.reason.code, end.reason.reason or "")


async def ask(server: Listening, prompt: str, query: str = "", key: str | None = None, **options: object) -> Said:
    """Send one prompt and read to the close."""
    async with connect(server, query, key) as socket:
        await socket.send_message(json.dumps({"prompt": prompt, "meta": "TEST-1", **options}))
        return await listen(socket)


async def send_raw(server: Server, *messages: str | bytes) -> Said:
    """Send messages as they are and read to the close."""
    async with connect(server) as socket:
        for message in messages:
            await socket.send_message(message)
        return await listen(socket)


async def call(
    server: Listening, path: str, key: str | None = None, method: str = "GET"
) -> tuple[int, dict[str, str], bytes]:
    """Return status, headers and body of an answer."""
    auth = f"Authorization: Bearer {key}\r\n" if key else ""
    async with await trio.open_tcp_stream("127.0.0.1", server.port) as stream:
        await stream.send_all(
            f"{method} {path} HTTP/1.1\r\nHost: localhost\r\n{auth}Connection: close\r\n\r\n".encode()
        )
        answer = b"".join([chunk async for chunk in stream])
    head, _, body = answer.partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:])}
    return int(lines[0].split()[1]), headers, body


async def get(server: Listening, path: str, key: str | None = None) -> Any:
    """Return what a good answer says."""
    status, _, body = await call(server, path, key)
    assert status == 200, body
    return json.loads(body)


# -- what is left -----------------------------------------------------------------------------------------------------


def bearing(variable: str) -> list[int]:
    """Return the processes that have `variable` in their environment."""
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit() and _bears(entry, variable)]


def _bears(entry: Path, variable: str) -> bool:
    try:
        return variable.encode() in (entry / "environ").read_bytes().split(b"\0")
    except OSError:
        return False


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in "ZX"


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def zygotes() -> list[int]:
    """Return the zygotes that this process has, also one that is just starting."""
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit() and _is_zygote(entry)]


def _is_zygote(entry: Path) -> bool:
    try:
        ours = parent(int(entry.name)) == os.getpid()
        return ours and (entry / "cmdline").read_bytes().startswith(b"trio-claude-zygote\0")
    except (FileNotFoundError, ProcessLookupError):
        return False


def descriptors() -> set[str]:
    return {f"{fd}:{os.readlink(f'/proc/self/fd/{fd}')}" for fd in os.listdir("/proc/self/fd") if _open(fd)}


def held(server: Server) -> int:
    """Return how many descriptors this process holds but for those of supervisors that wait for their next run."""
    return len(descriptors()) - 2 * len(server.runs._kit.containment._spare)  # type: ignore[attr-defined] # supervisors only


def _open(fd: str) -> bool:
    return os.path.islink(f"/proc/self/fd/{fd}")


@contextmanager
def short_folder() -> Iterator[Path]:
    """A folder whose path leaves room for the CLI's sockets."""
    with tempfile.TemporaryDirectory(prefix="tct-", dir="/tmp") as folder:
        yield Path(folder)


@contextmanager
def few_descriptors(spare: int) -> Iterator[None]:
    """Leave this process just `spare` descriptors."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken = {number for number in range(min(soft, 10_000)) if Path(f"/proc/self/fd/{number}").is_symlink()}
    free = (number for number in range(soft) if number not in taken)
    limit = [next(free) for _ in range(spare + 1)][-1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def cgroup2() -> list[Path]:
    """Return where cgroup v2 is mounted."""
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    return [Path(fields[1]) for fields in mounts if fields[2] == "cgroup2"]


async def until(check: object, seconds: float = 5) -> None:
    """Wait until `check()` is true. Raises trio.TooSlowError."""
    with trio.fail_after(seconds):
        while not check():  # type: ignore[operator]
            await trio.sleep(0.01)


def wait_for(check: Callable[[], object], seconds: float = 10) -> None:
    """Wait until `check()` is true, where there is no Trio: in a thread, or a test of what has threads of its own."""
    deadline = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < deadline
        time.sleep(0.01)  # nobody tells of it
