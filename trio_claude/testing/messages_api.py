"""Stand in for the Anthropic Messages API on loopback; the prompt says which answer it wants.

Rule 1: nothing here listens or connects anywhere but 127.0.0.1, and no model, key or limit is judged: what was sent
is only recorded. Rule 2: what one client does must never end another client's answer, nor the stub.

The last user text that holds a directive, a JSON object between ``@@`` marks, chooses the answer:

=========  ==================================================  =======================================================
do         other fields (and what they are when left out)      answer
=========  ==================================================  =======================================================
text       text ("Hello from stub."), deltas (3)               the text in that many deltas; also without a directive
slow       n (100), ms (50)                                    n deltas, ms apart
many       n (5000)                                            n deltas as fast as they are read
bigtext    bytes (1000000)                                     one delta of that size
think      text ("Thought answer.")                            a thinking block, then the text
bash       cmd, rounds (1), bg (false), timeout (none, ms)     as many uses of Bash, one an answer, then a final text
tool       name, input ({}), rounds (1)                        the same with any tool
tools      calls: [{"name": ..., "input": ...}], rounds (1)    the same with several uses in one answer
err        status, retry_after (none, s), noretry (false),     an HTTP error; after ``times`` of them (-1: no end) a
           times (-1)                                          text. 400 401 403 404 413 429 500 503 529
miderr     type ("overloaded_error"), n (5)                    n deltas, then an error event
stall      n (5)                                               n deltas, then silence
hang                                                           silence, not even a status line
reset      n (5)                                               n deltas, then a TCP reset
=========  ==================================================  =======================================================

The final text is "All done after N tool results." Any other ``do``, and a field of the wrong kind, is answered by
HTTP 400 naming it. A request without ``"stream": true`` gets the same answer as one JSON object.

Run as a program, it prints where it listens and serves until SIGTERM or SIGINT::

    python -m trio_claude.testing.messages_api --port 8765
"""

from __future__ import annotations

import argparse
import contextlib
import enum
import json
import math
import secrets
import signal
import socket
import struct
import sys
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from http import HTTPStatus
from typing import Any, TypeAlias, TypeVar

import attrs
import h11
import trio

__all__ = ["ApiAnswer", "ApiRequest", "Ending", "MessagesApi", "open_messages_api"]

Json: TypeAlias = dict[str, Any]
T = TypeVar("T")

HOST = "127.0.0.1"
MAX_BODY_BYTES = 64 * 2**20
"""A request with images reaches tens of MB; the API itself refuses at 32 MB, and that is not ours to judge."""
MAX_HEAD_BYTES = 64 * 2**10
READ_BYTES = 64 * 2**10
LINGER_SECONDS = 1.0
"""How long a refused client may go on sending: closing with unread bytes would destroy the refusal on its way."""
RESET_DELAY_SECONDS = 0.2
"""Before a reset, so that the client reads the deltas first."""
TOOL_INPUT_PIECE_CHARS = 40
LAST_EVENTS = frozenset({"message_stop", "error"})

MARK = "@@"
ERROR_TYPES: Mapping[int, str] = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    500: "api_error",
    503: "api_error",
    529: "overloaded_error",
}


# ---- What was asked, and how it ended ----


@attrs.frozen
class ApiRequest:
    """One request as it arrived; `body` is empty if it was not a JSON object."""

    method: str
    path: str
    headers: dict[str, str]
    body: Json
    size: int

    @property
    def model(self) -> str | None:
        """The model asked for."""
        return self.body.get("model")

    @property
    def n_messages(self) -> int:
        """How many messages the conversation has."""
        return len(_list(self.body.get("messages")))

    @property
    def n_tools(self) -> int:
        """How many tools the model may use."""
        return len(_list(self.body.get("tools")))


class Ending(enum.StrEnum):
    """How an answer is to end, or has ended."""

    COMPLETE = "complete"
    SILENCE = "silence"
    RESET = "reset"
    CLIENT_GONE = "client_gone"


@attrs.frozen
class ApiAnswer:
    """One answer that has ended, SILENCE excepted: that ends as CLIENT_GONE."""

    request: ApiRequest
    ending: Ending


# ---- Directives ----


class DirectiveError(ValueError):
    """A directive that cannot be followed; its text goes to the client."""


@attrs.frozen
class Directive:
    """One directive, and how far the conversation has followed it."""

    fields: Json = attrs.field(factory=dict)
    source: str = ""
    results: int = 0
    """Tool results sent since."""
    seen: int = 0
    """Earlier requests with this very directive; counted for `err` alone."""

    def get(self, name: str, kind: type[T], default: T | None = None) -> T:
        """Return a field that must be of `kind`, and must be there unless it has a default."""
        value = self.fields.get(name, default)
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise DirectiveError(f"directive field {name!r} must be of type {kind.__name__}, not {value!r:.80}")
        return value

    def seconds(self, name: str, default: float, unit: float = 1.0) -> float:
        """Return a duration given in multiples of `unit` seconds."""
        value = self.fields.get(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
            raise DirectiveError(f"directive field {name!r} must be a duration, not {value!r:.80}")
        return value * unit


def find_directive(body: Json) -> Directive:
    """Return the directive of the last user text that holds one, or an empty one."""
    messages = [message for message in _list(body.get("messages")) if isinstance(message, dict)]
    users = [message for message in messages if message.get("role") == "user"]
    results = 0
    for message in reversed(users):
        for text in reversed(list(_texts(message))):
            if found := list(_directives(text)):
                return attrs.evolve(found[-1], results=results)
        results += sum(block.get("type") == "tool_result" for block in _blocks(message))
    return Directive()


def _directives(text: str) -> Iterator[Directive]:
    """Yield each directive of one text; what looks like one and is not JSON is plain text.

    The JSON decoder says where the object ends, so a string in it may hold the end mark.
    """
    decoder = json.JSONDecoder()
    start = text.find(MARK + "{")
    while start >= 0:
        end = start = start + len(MARK)
        with contextlib.suppress(ValueError, RecursionError):
            fields, end = decoder.raw_decode(text, start)
            if text.startswith(MARK, end):
                yield Directive(fields, text[start:end])
                end += len(MARK)
        start = text.find(MARK + "{", end)


def _texts(message: Json) -> Iterator[str]:
    if isinstance(message.get("content"), str):
        yield message["content"]
    for block in _blocks(message):
        if block.get("type") == "text" and isinstance(block.get("text"), str):
            yield block["text"]


def _blocks(message: Json) -> list[Json]:
    return [block for block in _list(message.get("content")) if isinstance(block, dict)]


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


# ---- Answers: what is said, whatever the transport ----


@attrs.frozen
class Block:
    """One content block: its parts as streamed, and the whole."""

    start: Json
    deltas: Iterable[Json]
    whole: Json


@attrs.frozen
class Answer:
    """A message, whole or broken off; with no blocks not even its head is sent."""

    blocks: Sequence[Block] = ()
    stop_reason: str = "end_turn"
    output_tokens: int = 7
    pause: float = 0.0
    """Seconds after each delta."""
    error: Json | None = None
    """Comes in the place of the message's end."""
    ending: Ending = Ending.COMPLETE


@attrs.frozen
class Reply:
    """One HTTP response sent at once."""

    status: int
    body: Json
    headers: Mapping[str, str] = attrs.field(factory=dict)


def error_reply(status: int, message: str, headers: Mapping[str, str] | None = None) -> Reply:
    """Return an error as the API words it."""
    return Reply(status, _error(ERROR_TYPES.get(status, "api_error"), message), headers or {})


def _error(kind: str, message: str) -> Json:
    return {"type": "error", "error": {"type": kind, "message": message}, "request_id": "req_stub"}


def _text_block(pieces: Sequence[str]) -> Block:
    return Block(
        start={"type": "text", "text": ""},
        deltas=({"type": "text_delta", "text": piece} for piece in pieces),
        whole={"type": "text", "text": "".join(pieces)},
    )


def _thinking_block(thought: str, signature: str) -> Block:
    return Block(
        start={"type": "thinking", "thinking": "", "signature": ""},
        deltas=(
            {"type": "thinking_delta", "thinking": thought},
            {"type": "signature_delta", "signature": signature},
        ),
        whole={"type": "thinking", "thinking": thought, "signature": signature},
    )


def _tool_block(name: str, tool_input: Json) -> Block:
    start = {"type": "tool_use", "id": _new_id("toolu"), "name": name}
    pieces = _pieces(json.dumps(tool_input), TOOL_INPUT_PIECE_CHARS)
    return Block(
        start={**start, "input": {}},
        deltas=({"type": "input_json_delta", "partial_json": piece} for piece in pieces),
        whole={**start, "input": tool_input},
    )


def _new_id(kind: str) -> str:
    # Random, not counted: a conversation may outlive this stub, and must not meet an id again in the next.
    return f"{kind}_stub{secrets.token_hex(8)}"


def _pieces(text: str, size: int) -> list[str]:
    return [text[at : at + size] for at in range(0, len(text), size)]


def _tokens(count: int) -> list[str]:
    return [f"tok{number} " for number in range(count)]


# ---- One function a directive ----


def _text(directive: Directive) -> Answer:
    text = directive.get("text", str, "Hello from stub.")
    size = math.ceil(len(text) / max(1, directive.get("deltas", int, 3)))
    return Answer([_text_block(_pieces(text, max(1, size)))])


def _slow(directive: Directive) -> Answer:
    count = directive.get("n", int, 100)
    pause = directive.seconds("ms", 50, unit=0.001)
    return Answer([_text_block(_tokens(count))], output_tokens=count, pause=pause)


def _many(directive: Directive) -> Answer:
    count = directive.get("n", int, 5000)
    return Answer([_text_block(_tokens(count))], output_tokens=count)


def _bigtext(directive: Directive) -> Answer:
    return Answer([_text_block(["x" * directive.get("bytes", int, 1_000_000)])])


def _think(directive: Directive) -> Answer:
    text = directive.get("text", str, "Thought answer.")
    return Answer([_thinking_block("Let me think. ", "c2ln"), _text_block([text])])


def _bash(directive: Directive) -> Answer:
    tool_input: Json = {"command": directive.get("cmd", str), "description": "stub command"}
    if directive.get("bg", bool, False):
        tool_input["run_in_background"] = True
    if "timeout" in directive.fields:
        tool_input["timeout"] = directive.get("timeout", int)
    return _use_tools(directive, [_tool_block("Bash", tool_input)])


def _tool(directive: Directive) -> Answer:
    return _use_tools(directive, [_tool_call(directive)])


def _tools(directive: Directive) -> Answer:
    calls = directive.get("calls", list)
    if not calls or not all(isinstance(call, dict) for call in calls):
        raise DirectiveError("directive field 'calls' must hold objects, at least one")
    return _use_tools(directive, [_tool_call(Directive(call)) for call in calls])


def _tool_call(directive: Directive) -> Block:
    return _tool_block(directive.get("name", str), directive.get("input", dict, {}))


def _use_tools(directive: Directive, uses: list[Block]) -> Answer:
    if directive.results >= len(uses) * directive.get("rounds", int, 1):
        return Answer([_text_block(["All ", "done ", f"after {directive.results} tool results."])])
    return Answer([_text_block(["I will ", "run it."]), *uses], stop_reason="tool_use", output_tokens=20)


def _err(directive: Directive) -> Answer | Reply:
    status, times = directive.get("status", int), directive.get("times", int, -1)
    if status not in ERROR_TYPES:
        raise DirectiveError(f"directive field 'status' cannot be {status}")
    if 0 <= times <= directive.seen:
        return Answer([_text_block([f"ok after {times} errors"])])
    headers = {}
    if "retry_after" in directive.fields:
        headers["retry-after"] = f"{directive.seconds('retry_after', 0):.10g}"
    if directive.get("noretry", bool, False):
        headers["x-should-retry"] = "false"
    return error_reply(status, f"stub error {status}", headers)


def _miderr(directive: Directive) -> Answer:
    error = _error(directive.get("type", str, "overloaded_error"), "stub mid-stream error")
    return attrs.evolve(_broken_off(directive, Ending.COMPLETE), error=error)


def _stall(directive: Directive) -> Answer:
    return _broken_off(directive, Ending.SILENCE)


def _hang(directive: Directive) -> Answer:
    return Answer(ending=Ending.SILENCE)


def _reset(directive: Directive) -> Answer:
    return _broken_off(directive, Ending.RESET)


def _broken_off(directive: Directive, ending: Ending) -> Answer:
    return Answer([_text_block(_tokens(directive.get("n", int, 5)))], ending=ending)


_ANSWERS: Mapping[str, Callable[[Directive], Answer | Reply]] = {
    "text": _text,
    "slow": _slow,
    "many": _many,
    "bigtext": _bigtext,
    "think": _think,
    "bash": _bash,
    "tool": _tool,
    "tools": _tools,
    "err": _err,
    "miderr": _miderr,
    "stall": _stall,
    "hang": _hang,
    "reset": _reset,
}


def _answer(directive: Directive) -> Answer | Reply:
    do = directive.get("do", str, "text")
    if do not in _ANSWERS:
        raise DirectiveError(f"unknown directive {do!r:.80}")
    return _ANSWERS[do](directive)


# ---- Answers as HTTP ----


@attrs.frozen
class EventStream:
    """Server-sent events; the status line goes out with the first of them."""

    events: Iterable[Json]
    pause: float = 0.0
    ending: Ending = Ending.COMPLETE


def _as_http(answer: Answer, head: Json, *, stream: bool) -> Reply | EventStream:
    if stream:
        return EventStream(_events(answer, head), answer.pause, answer.ending)
    if answer.ending is not Ending.COMPLETE:
        return EventStream((), ending=answer.ending)
    if answer.error:
        return Reply(500, answer.error)
    content = [block.whole for block in answer.blocks]
    usage = {**head["usage"], "output_tokens": answer.output_tokens}
    return Reply(200, {**head, "content": content, "stop_reason": answer.stop_reason, "usage": usage})


def _events(answer: Answer, head: Json) -> Iterator[Json]:
    if not answer.blocks:
        return
    yield {"type": "message_start", "message": head}
    broken_off = answer.error is not None or answer.ending is not Ending.COMPLETE
    for index, block in enumerate(answer.blocks):
        yield {"type": "content_block_start", "index": index, "content_block": block.start}
        for delta in block.deltas:
            yield {"type": "content_block_delta", "index": index, "delta": delta}
        if not broken_off:
            yield {"type": "content_block_stop", "index": index}
    if answer.error:
        yield answer.error
    elif not broken_off:
        yield from _end_events(answer)


def _end_events(answer: Answer) -> list[Json]:
    delta = {"stop_reason": answer.stop_reason, "stop_sequence": None}
    usage = {"output_tokens": answer.output_tokens}
    return [{"type": "message_delta", "delta": delta, "usage": usage}, {"type": "message_stop"}]


def _message_head(model: object) -> Json:
    return {
        "id": _new_id("msg"),
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": {
            "input_tokens": 10,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 0,
            "output_tokens": 1,
        },
    }


def _response(status: int, headers: Mapping[str, str]) -> h11.Response:
    reason = "Overloaded" if status == 529 else HTTPStatus(status).phrase
    named = [*headers.items(), ("request-id", "req_stub")]
    return h11.Response(status_code=status, reason=reason.encode(), headers=named)


def _parse_body(raw: bytes) -> Json:
    try:
        body = json.loads(raw)
    except (ValueError, RecursionError):
        return {}
    return body if isinstance(body, dict) else {}


@attrs.frozen(eq=False)
class _Connection:
    """One client's connection.

    Resource handling: closing the stream is the caller's. Error handling: `trio.BrokenResourceError` from `read` means
    that the client is gone; `perform` reports that by its ending.
    """

    stream: trio.SocketStream
    http: h11.Connection = attrs.field(
        init=False, factory=lambda: h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEAD_BYTES)
    )

    async def read(self) -> ApiRequest | None:
        """Read the next request; None if there is none, or one that had to be refused."""
        try:
            head = await self._next_event()
            return await self._read_body(head) if isinstance(head, h11.Request) else None
        except h11.RemoteProtocolError as error:
            await self._refuse(error)
            return None

    async def perform(self, plan: Reply | EventStream) -> Ending:
        """Send an answer, or as much of it as the client stays for; say how it ended."""
        ending = Ending.CLIENT_GONE
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch, nursery.cancel_scope)
            with contextlib.suppress(trio.BrokenResourceError):
                ending = await (self._reply(plan) if isinstance(plan, Reply) else self._stream(plan))
            nursery.cancel_scope.cancel()
        return ending

    def reuse(self) -> bool:
        """Make ready for another request, if the client keeps the connection."""
        reusable = self.http.our_state is h11.DONE and self.http.their_state is h11.DONE
        if reusable:
            self.http.start_next_cycle()
        return reusable

    async def _next_event(self) -> object:
        while (event := self.http.next_event()) is h11.NEED_DATA:
            if self.http.they_are_waiting_for_100_continue:
                await self._send(h11.InformationalResponse(status_code=100, headers=[]))
            self.http.receive_data(await self.stream.receive_some(READ_BYTES))
        return event

    async def _read_body(self, head: h11.Request) -> ApiRequest:
        headers = {name.decode("ascii"): value.decode("latin-1") for name, value in head.headers}
        self._check_size(int(headers.get("content-length", 0)))
        raw = bytearray()
        while isinstance(event := await self._next_event(), h11.Data):
            raw += event.data
            self._check_size(len(raw))
        body = _parse_body(bytes(raw))
        return ApiRequest(head.method.decode(), head.target.decode("latin-1"), headers, body, len(raw))

    def _check_size(self, size: int) -> None:
        if size > MAX_BODY_BYTES:
            raise h11.RemoteProtocolError(f"the body is over {MAX_BODY_BYTES} bytes", error_status_hint=413)

    async def _refuse(self, error: h11.RemoteProtocolError) -> None:
        with contextlib.suppress(h11.LocalProtocolError):  # a HEAD takes no body: it is refused by closing
            await self._reply(error_reply(error.error_status_hint, str(error), {"connection": "close"}))
        with trio.move_on_after(LINGER_SECONDS):
            await self.stream.send_eof()
            while await self.stream.receive_some(READ_BYTES):
                pass

    async def _watch(self, answering: trio.CancelScope) -> None:
        """End the answer as soon as the client closes, or half-closes, the connection.

        A client that sends its next request early is watched no longer, so that what it sends stays in its socket.
        """
        try:
            data = await self.stream.receive_some(READ_BYTES)
        except trio.BrokenResourceError:
            data = b""
        if data:
            self.http.receive_data(data)
        else:
            answering.cancel()

    async def _reply(self, reply: Reply) -> Ending:
        body = json.dumps(reply.body).encode() if reply.body else b""
        framing = {"content-type": "application/json", "content-length": str(len(body))}
        await self._send(_response(reply.status, {**framing, **reply.headers}), h11.Data(body), h11.EndOfMessage())
        return Ending.COMPLETE

    async def _stream(self, answer: EventStream) -> Ending:
        for event in answer.events:
            if self.http.our_state is h11.SEND_RESPONSE:
                await self._send(_response(200, {"content-type": "text/event-stream", "cache-control": "no-cache"}))
            data = h11.Data(f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode())
            # One write: a client may leave as soon as it has the last event, and has been served all the same.
            await self._send(data, *([h11.EndOfMessage()] if event["type"] in LAST_EVENTS else []))
            if answer.pause and event["type"] == "content_block_delta":
                await trio.sleep(answer.pause)
        return await self._end(answer.ending)

    async def _end(self, ending: Ending) -> Ending:
        if ending is Ending.SILENCE:
            await trio.sleep_forever()
        if ending is Ending.RESET:
            await trio.sleep(RESET_DELAY_SECONDS)
            self.stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        return ending

    async def _send(self, *events: h11.Event) -> None:
        await self.stream.send_all(b"".join(self.http.send(event) or b"" for event in events))


# ---- The stub ----


@attrs.define(eq=False)
class MessagesApi:
    """A stub that listens, and what it has seen; `open_messages_api` makes it.

    Each record keeps the most recent entries only; the `wait_…` methods count all there ever were.
    """

    port: int
    requests: deque[ApiRequest] = attrs.field(repr=False)
    answers: deque[ApiAnswer] = attrs.field(repr=False)
    failures: deque[Exception]
    """What went wrong in here, a client's faults not included: empty unless the stub has a bug."""
    _n_requests: int = attrs.field(default=0, init=False, repr=False)
    _n_answers: int = attrs.field(default=0, init=False, repr=False)
    _answering: set[_Connection] = attrs.field(factory=set, init=False, repr=False)
    _seen: Counter[str] = attrs.field(factory=Counter, init=False, repr=False)
    _changed: trio.lowlevel.ParkingLot = attrs.field(factory=trio.lowlevel.ParkingLot, init=False, repr=False)

    @property
    def url(self) -> str:
        """What to set ANTHROPIC_BASE_URL to."""
        return f"http://{HOST}:{self.port}"

    @property
    def open_streams(self) -> int:
        """How many clients are being answered now, the stalled and the hanging included."""
        return len(self._answering)

    async def wait_requests(self, count: int) -> None:
        """Wait until `count` requests have arrived since the start."""
        await self._wait_until(lambda: self._n_requests >= count)

    async def wait_answers(self, count: int) -> None:
        """Wait until `count` answers have ended since the start, in any way."""
        await self._wait_until(lambda: self._n_answers >= count)

    async def wait_open_streams(self, count: int) -> None:
        """Wait until just `count` clients are being answered; a moment of it may be missed."""
        await self._wait_until(lambda: self.open_streams == count)

    async def _wait_until(self, holds: Callable[[], bool]) -> None:
        await trio.lowlevel.checkpoint()
        while not holds():
            await self._changed.park()

    async def _serve(self, stream: trio.SocketStream) -> None:
        """Serve one client to its end; `trio.serve_listeners` closes the stream."""
        connection = _Connection(stream)
        try:
            while (request := await connection.read()) and await self._answer(connection, request):
                pass
        except trio.BrokenResourceError:
            pass  # the client is gone
        except Exception as error:
            self.failures.append(error)

    async def _answer(self, connection: _Connection, request: ApiRequest) -> bool:
        self._note_request(request, connection)
        try:
            ending = await connection.perform(self._plan(request))
            self._note_answer(ApiAnswer(request, ending))
        finally:
            self._answering.discard(connection)
            self._changed.unpark_all()
        return ending is Ending.COMPLETE and connection.reuse()

    def _note_request(self, request: ApiRequest, connection: _Connection) -> None:
        self.requests.append(request)
        self._n_requests += 1
        self._answering.add(connection)
        self._changed.unpark_all()

    def _note_answer(self, answer: ApiAnswer) -> None:
        self.answers.append(answer)
        self._n_answers += 1

    def _plan(self, request: ApiRequest) -> Reply | EventStream:
        path = request.path.partition("?")[0]
        if request.method == "HEAD":
            return Reply(200, {})
        if request.method != "POST" or path not in ("/v1/messages", "/v1/messages/count_tokens"):
            return error_reply(404, f"no such path: {request.method} {path:.80}")
        if not request.body:
            return error_reply(400, "the body must be a JSON object")
        if path.endswith("/count_tokens"):
            return Reply(200, {"input_tokens": 42})
        return self._plan_message(request.body)

    def _plan_message(self, body: Json) -> Reply | EventStream:
        try:
            answer = _answer(self._count(find_directive(body)))
        except DirectiveError as error:
            return error_reply(400, str(error))
        if isinstance(answer, Reply):
            return answer
        return _as_http(answer, _message_head(body.get("model")), stream=body.get("stream") is True)

    def _count(self, directive: Directive) -> Directive:
        if directive.fields.get("do") != "err":
            return directive
        self._seen[directive.source] += 1
        return attrs.evolve(directive, seen=self._seen[directive.source] - 1)


@contextlib.asynccontextmanager
async def open_messages_api(port: int = 0, max_requests: int = 1000) -> AsyncIterator[MessagesApi]:
    """Listen on loopback while the context lasts; port 0 takes a free one.

    Resource handling: leaving the context closes the listener and every connection at once, whatever is being sent.
    Error handling: what the body raises comes out as it is, not in a group; clients' errors stay inside.
    """
    failure: BaseException | None = None
    try:
        async with trio.open_nursery() as nursery:
            listeners = await trio.open_tcp_listeners(port, host=HOST)
            api = MessagesApi(
                port=listeners[0].socket.getsockname()[1],
                requests=deque(maxlen=max_requests),
                answers=deque(maxlen=max_requests),
                failures=deque(maxlen=max_requests),
            )
            await nursery.start(trio.serve_listeners, api._serve, listeners)
            yield api
            nursery.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        failure = group.exceptions[0] if len(group.exceptions) == 1 else group
    if failure is not None:
        raise failure  # out here, its own cause and context stay as they were


async def _run(port: int) -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with open_messages_api(port) as api:
            sys.stdout.write(f"listening on {api.url}\n")
            sys.stdout.flush()
            await anext(signals)


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve until SIGTERM or SIGINT."""
    parser = argparse.ArgumentParser(prog="python -m trio_claude.testing.messages_api", description="Messages API stub")
    parser.add_argument("--port", type=int, default=0, help="port on 127.0.0.1 (default: any free one)")
    trio.run(_run, parser.parse_args(arguments).port)


if __name__ == "__main__":
    main()
