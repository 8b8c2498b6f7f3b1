"""A transport for the official Claude Agent SDK: its CLI runs on a trio-claude server.

    transport = WebSocketTransport("http://127.0.0.1:3000", options=options)
    async for message in query(prompt="Hello", options=options, transport=transport): ...

Duty: carry the SDK's lines to `/ws/session` and the CLI's back, under asyncio and under Trio. What an option asks for
and the server can't give is refused by name; this module must never drop one without a word.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import AsyncIterator, Coroutine, Mapping
from typing import Any, TypeAlias

import anyio
import sniffio
from claude_agent_sdk import ClaudeAgentOptions, CLIConnectionError, ProcessError, Transport

from .client.sessions import ENDING, NOT_OPEN
from .client.sockets import BROKEN, Inbox, Socket, door, dumps, open_socket

Json: TypeAlias = dict[str, Any]

CLOSE_TIMEOUT = 5.0
"""Seconds that `close` waits for the connection to be given up."""
STDERR_KEPT = 100
"""Lines of the CLI's stderr that an error tells."""

PASSED = "passed"
LOCAL = "local"
GRANT = "grant"
REFUSED = "refused"

FIELDS: Mapping[str, str] = {
    "model": PASSED,
    "system_prompt": PASSED,
    "max_turns": PASSED,
    "max_budget_usd": PASSED,
    "effort": PASSED,
    "resume": PASSED,
    "fork_session": PASSED,
    "include_partial_messages": PASSED,
    "output_format": PASSED,
    "mcp_servers": GRANT,
    "tools": GRANT,
    "allowed_tools": GRANT,
    "disallowed_tools": GRANT,
    "permission_mode": GRANT,
    "fallback_model": GRANT,
    "max_thinking_tokens": GRANT,
    "thinking": GRANT,
    "can_use_tool": LOCAL,
    "hooks": LOCAL,
    "stderr": LOCAL,
    "debug_stderr": LOCAL,
    "max_buffer_size": LOCAL,
    "load_timeout_ms": LOCAL,
    "session_store_flush": LOCAL,
    "client_app": LOCAL,
    "verbatim_prompts": LOCAL,
    "strict_mcp_config": LOCAL,
    "permission_prompt_tool_name": REFUSED,
    "continue_conversation": REFUSED,
    "session_id": REFUSED,
    "betas": REFUSED,
    "cwd": REFUSED,
    "cli_path": REFUSED,
    "settings": REFUSED,
    "add_dirs": REFUSED,
    "env": REFUSED,
    "extra_args": REFUSED,
    "user": REFUSED,
    "include_hook_events": REFUSED,
    "forward_subagent_text": REFUSED,
    "resume_session_at": REFUSED,
    "resume_drops_turn": REFUSED,
    "agents": REFUSED,
    "setting_sources": REFUSED,
    "skills": REFUSED,
    "sandbox": REFUSED,
    "plugins": REFUSED,
    "enable_file_checkpointing": REFUSED,
    "session_store": REFUSED,
    "task_budget": REFUSED,
}
"""What becomes of each field of `ClaudeAgentOptions`. PASSED: the server takes it unless its operator says otherwise.
GRANT: only where its operator grants it by name (servers that live in this program need no grant). LOCAL: it concerns
this program, or always holds: what users say is always verbatim, and other MCP servers are the operator's alone.
REFUSED: where it is set, `WebSocketTransport` raises `ValueError`."""
STDIO = "stdio"
"""What `permission_prompt_tool_name` may be: the SDK sets it itself, and a session always has it."""


def start_options(options: ClaudeAgentOptions) -> tuple[Json, list[str]]:
    """Return what a session is started with, and the names of the MCP servers that live in this program.

    Raises `ValueError` for a field that can't be had.
    """
    for name in _set(options):
        fate = FIELDS.get(name, REFUSED)
        if fate == REFUSED and not (name == "permission_prompt_tool_name" and getattr(options, name) == STDIO):
            raise ValueError(f"{name}: not over a trio-claude server; its operator chooses it")
    own, servers = _mcp_servers(options)
    wanted: Json = {
        "model": options.model,
        **_system_prompt(options.system_prompt),
        "max_turns": options.max_turns,
        "max_budget_usd": options.max_budget_usd,
        "effort": options.effort,
        "resume": options.resume,
        "fork": options.fork_session or None,
        "partial": options.include_partial_messages or None,
        "json_schema": _schema(options.output_format),
        "tools": _tools(options.tools),
        "allowed_tools": options.allowed_tools or None,
        "disallowed_tools": options.disallowed_tools or None,
        "permission_mode": options.permission_mode,
        "fallback_model": options.fallback_model,
        "max_thinking_tokens": _thinking(options),
        "mcp_servers": servers or None,
    }
    return {name: value for name, value in wanted.items() if value is not None}, own


def _set(options: ClaudeAgentOptions) -> list[str]:
    """Return the fields that are not what they are by default."""
    plain = ClaudeAgentOptions()
    return [
        field.name
        for field in dataclasses.fields(options)
        if getattr(options, field.name) != getattr(plain, field.name)
    ]


def _system_prompt(prompt: Any) -> Json:
    """Return the options of a system prompt; none is an empty one to the SDK, and the CLI's own to the CLI."""
    if prompt is None or isinstance(prompt, str):
        return {"system_prompt": prompt or ""}
    kind, keys = prompt.get("type"), set(prompt) - {"type"}
    if kind == "custom" and keys == {"prompt"}:
        return {"system_prompt": prompt["prompt"]}
    if kind == "preset" and keys <= {"preset", "append"}:
        return {"append_system_prompt": prompt["append"]} if prompt.get("append") else {}
    raise ValueError(f"system_prompt: of the kind {kind}, with {sorted(keys)}, not over a server")


def _schema(output: Any) -> Json | None:
    if output is None:
        return None
    if output.get("type") != "json_schema":
        raise ValueError(f"output_format: {output.get('type')} is not known; json_schema is")
    schema: Json = output.get("schema")
    return schema


def _tools(tools: Any) -> list[str] | None:
    return ["default"] if isinstance(tools, dict) else tools


def _thinking(options: ClaudeAgentOptions) -> int | None:
    """Return the thinking budget in tokens."""
    thinking: Any = options.thinking
    if thinking is None:
        return options.max_thinking_tokens
    if set(thinking) == {"type", "budget_tokens"} and thinking["type"] == "enabled":
        budget: int = thinking["budget_tokens"]
        return budget
    raise ValueError(f"thinking: {thinking} can't be had over a server; enabled with budget_tokens can")


def _mcp_servers(options: ClaudeAgentOptions) -> tuple[list[str], Json]:
    """Return the names of the servers in this program, and the others as they are."""
    if not isinstance(options.mcp_servers, dict):
        raise ValueError("mcp_servers: a file's name means nothing to a server; give the servers themselves")
    kinds = {name: dict(server) for name, server in options.mcp_servers.items()}
    own = [name for name, server in kinds.items() if server.get("type") == "sdk"]
    return own, {name: server for name, server in kinds.items() if name not in own}


class WebSocketTransport(Transport):
    """The SDK's way to a CLI on a server. For one `query` or one `ClaudeSDKClient`.

    `options` are the same that the SDK gets: it does not tell them to a transport. `meta` names the run on the server,
    `key` is an API key or token, where the server wants one.

    Resource handling: `connect` opens a WebSocket in a task of its own and `close` gives it up, which ends the run and
    all its processes; neither depends on the task that calls. Error handling: what the server refuses and every bad end
    is an error of the SDK's own kinds. Raises `ValueError` for options that can't be had.
    """

    def __init__(
        self,
        url: str = "http://127.0.0.1:3000",
        *,
        options: ClaudeAgentOptions | None = None,
        meta: str = "SDK",
        key: str | None = None,
    ) -> None:
        self._options = options or ClaudeAgentOptions()
        self._start, self._own_servers = start_options(self._options)
        self._url = url
        self._meta = meta
        self._key = key
        self._socket: Socket | None = None
        self._frames: Inbox[Json] = Inbox(alive=self._show_life)
        self._asked: set[str] = set()
        self._failure: BaseException | None = None
        self._started = False
        self._opened = anyio.Event()
        self._closing = anyio.Event()
        self._closed = anyio.Event()
        self._stderr: list[str] = []
        self._over = False

    async def connect(self) -> None:
        """Connect, start the session, and wait until the CLI runs. Raises `CLIConnectionError`."""
        if self._started and not self._over:
            return
        if self._opened.is_set() or self._over:
            raise CLIConnectionError("this transport was used already; make another") from self._failure
        _spawn(self._hold())
        try:
            await self._begin()
        except BaseException:  # a cancellation too: whoever gave up will not call close
            self.give_up()
            raise
        self._started = True

    async def _begin(self) -> None:
        await self._opened.wait()
        if self._failure:
            raise CLIConnectionError(str(self._failure)) from self._failure
        await self._send({"type": "gateway", "op": "start", "meta": self._meta, "options": self._start})
        while (said := await self._frames.take()) is not None:
            if said.get("event") == "started":
                return
            if said.get("event") == "refused":
                raise CLIConnectionError(f"the server refused: {said.get('error')}")
            if said.get("event") == "ended":
                raise CLIConnectionError(f"the CLI did not run: {said.get('error') or said.get('reason')}")
        raise self._closed_without_end("the server closed before the CLI ran") from self._failure

    def _closed_without_end(self, otherwise: str) -> CLIConnectionError:
        """Return the error of a close that came without `ended`, by the server's reason if it gave one."""
        socket = self._socket
        if socket is None or socket.code in (None, BROKEN) or not socket.reason:
            return CLIConnectionError(otherwise)
        return CLIConnectionError(f"the server closed the connection: {socket.reason}")

    async def _hold(self) -> None:
        """Hold the socket and read it, in a task of its own, until `close` or its end."""
        try:
            async with (
                open_socket(door(self._url, "/ws/session", ""), self._url, self._key) as self._socket,
                anyio.create_task_group() as tasks,
            ):
                self._opened.set()
                tasks.start_soon(self._read, self._socket)
                await self._closing.wait()
                tasks.cancel_scope.cancel()
        except Exception as error:  # told by whoever waits; a task that belongs to nobody must not raise
            self._failure = error
        finally:
            self._over = True
            self._frames.close()
            self._opened.set()
            self._closed.set()

    async def _read(self, socket: Socket) -> None:
        """Read always, so that pings are answered while the program does something else."""
        while (text := await socket.receive()) is not None:
            if (said := _parse_object(text)) is not None:
                await self._frames.put(said, len(text))
        self._frames.close()

    async def _show_life(self) -> None:
        if self._socket:
            await self._socket.show_life()

    async def write(self, data: str) -> None:
        """Say lines to the CLI.

        Raises `CLIConnectionError` where nobody is left to hear them, ValueError for a number that is not finite.
        """
        for text in filter(str.strip, data.split("\n")):
            line = json.loads(text)
            request = line.get("request")
            if line.get("type") == "control_request":
                self._asked.add(str(line.get("request_id")))
            if self._own_servers and isinstance(request, dict) and request.get("subtype") == "initialize":
                request["sdkMcpServers"] = self._own_servers
            await self._send(line)

    async def _send(self, line: Json) -> None:
        if self._over or self._socket is None:
            raise CLIConnectionError("the session is over") from self._failure
        try:
            await self._socket.send(dumps(line))
        except ConnectionError as error:
            raise self._closed_without_end("the connection to the server broke") from error

    def read_messages(self) -> AsyncIterator[Json]:
        """Iterate over the CLI's lines; raises `ProcessError` after a bad end, `CLIConnectionError` after none."""
        return _Messages(self)

    async def next_message(self) -> Json | None:
        """Return the CLI's next line, None after a good end."""
        while (said := await self._frames.take()) is not None:
            if said.get("type") == "control_response":
                self._asked.discard(_answered(said))
            if said.get("type") != "gateway":
                return said
            if (answer := self._hear(said)) is not None:
                return answer
            if said.get("event") == "ended":
                self._over = True
                self._judge(said)
                return None
        if self._closing.is_set():
            return None
        raise self._closed_without_end("the connection to the server broke") from self._failure

    def _hear(self, said: Json) -> Json | None:
        """Take what the server says of its own; return the answer that a refused request gets in the CLI's place."""
        if said.get("event") == "stderr":
            self._take_stderr(str(said.get("line")))
        if said.get("event") != "refused":
            return None
        if (name := said.get("request_id")) in self._asked:
            self._asked.discard(str(name))
            failed = {"subtype": "error", "request_id": name, "error": said.get("error")}
            return {"type": "control_response", "response": failed}
        if name and said.get("code") in (NOT_OPEN, ENDING):  # an answer that came too late
            return None
        raise CLIConnectionError(f"the server refused: {said.get('error')}")

    def _take_stderr(self, line: str) -> None:
        if len(self._stderr) < STDERR_KEPT:
            self._stderr.append(line)
        if self._options.stderr:
            self._options.stderr(line)

    def _judge(self, ended: Json) -> None:
        """Raise what the SDK's own transport raises after a CLI that did not end well."""
        if ended.get("reason") == "exit" and not ended.get("exit_status"):
            return
        status, number = ended.get("exit_status"), ended.get("signal")
        raise ProcessError(
            str(ended.get("error") or f"the run ended: {ended.get('reason')}"),
            exit_code=status if status is not None else -number if number else None,
            stderr="\n".join(self._stderr) or None,
        )

    async def end_input(self) -> None:
        """Say nothing more: the CLI ends after its turn."""
        with contextlib.suppress(CLIConnectionError):
            await self._send({"type": "gateway", "op": "stop", "mode": "end"})

    async def close(self) -> None:
        """Give the connection up: the run ends with its whole process tree. Never waits longer than `CLOSE_TIMEOUT`."""
        self.give_up()
        if self._opened.is_set():
            with anyio.move_on_after(CLOSE_TIMEOUT):
                await self._closed.wait()

    def give_up(self) -> None:
        """Give the connection up, and wait for nothing."""
        self._over = True
        self._closing.set()

    def is_ready(self) -> bool:
        """Return whether something can be said."""
        return self._socket is not None and not self._over


def _parse_object(text: str) -> Json | None:
    """Return a line as an object, None for what is none: a CLI may write other words to its stdout."""
    try:
        said = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return said if isinstance(said, dict) else None


def _answered(said: Json) -> str:
    """Return which request the CLI has answered."""
    response = said.get("response")
    return str(response.get("request_id")) if isinstance(response, dict) else ""


class _Messages:
    def __init__(self, transport: WebSocketTransport) -> None:
        self._transport = transport

    def __aiter__(self) -> _Messages:
        return self

    async def __anext__(self) -> Json:
        try:
            line = await self._transport.next_message()
        except anyio.get_cancelled_exc_class():  # the SDK ends its reader and then closes, but not if cancelled twice
            self._transport.give_up()
            raise
        if line is None:
            raise StopAsyncIteration
        return line


_TASKS: set[Any] = set()
"""Tasks of asyncio, which keeps none alive by itself."""


def _spawn(job: Coroutine[Any, Any, None]) -> None:
    """Run a job in a task that belongs to nobody: the SDK may connect and close in different tasks."""
    if sniffio.current_async_library() == "trio":
        import trio

        async def run() -> None:
            await job

        trio.lowlevel.spawn_system_task(run)
        return
    import asyncio

    task = asyncio.get_running_loop().create_task(job)
    _TASKS.add(task)
    task.add_done_callback(_TASKS.discard)
