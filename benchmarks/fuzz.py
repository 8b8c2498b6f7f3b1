"""Coverage-guided fuzzing of what a client's bytes reach first; needs `pip install atheris`.

    python benchmarks/fuzz.py --target head|frames|messages|lines|all --minutes N

The invariant is h11's: input is accepted, or raises our error, never another. `head` feeds `serve_http`, `frames` feeds
`accept` behind a good handshake; both through a socket pair and on virtual time, the input in one piece or in several,
then a FIN. `messages` feeds `parse_prompt`, `lines` what rebuilds a client's lines on `/ws/session`. What the server
says is read back: whole answers, whole frames, nothing behind a close. `--minutes` are divided among the targets. The
exit status is 0 where nothing was found; `--replay HEX` runs one input again, with a traceback.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import socket
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

try:
    import atheris
except ImportError:
    sys.exit("atheris is not installed: pip install atheris")

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))

INSTRUMENTED = ["trio_claude", "h11", "wsproto", "trio_websocket"]

with atheris.instrument_imports(include=INSTRUMENTED) if "--child" in sys.argv else contextlib.nullcontext():
    import trio
    import trio.testing
    import wsproto
    from harness import head
    from hostile import GOOD, frame
    from trio_websocket import ConnectionClosed, HandshakeError

    from trio_claude.api import PAGES
    from trio_claude.config import OPTIONS, Config
    from trio_claude.errors import BadMessage, CloseCode, HttpRefusal, PeerGone
    from trio_claude.messages import parse_object, parse_prompt
    from trio_claude.peer import Heart, Wire, accept
    from trio_claude.peer.frames import CLOSE, PING, PONG, TEXT
    from trio_claude.session import Asked, parse_op, parse_start, rebuild
    from trio_claude.stream_json import user_line
    from trio_claude.turns import Turns
    from trio_claude.upgrade import Handshake, Request, Response, Site, check_upgrade, json_response, serve_http

GONE = (OSError, PeerGone, trio.BrokenResourceError, trio.ClosedResourceError)
"""What `connection` takes for a client that left."""
SWALLOWED = (*GONE, ConnectionClosed, HandshakeError, wsproto.utilities.LocalProtocolError)
"""What trio-websocket may raise in a connection's own nursery; the last for a ping that crosses our close."""
CONFIG = Config(max_message=1024, max_frames=8, ping_interval=3600, head_limit=2048)
INPUT_LIMIT = 4096
SLOW = 20
"""Seconds after which one input is a finding."""


class Finding(Exception):
    """The invariant does not hold."""


# -- one input --------------------------------------------------------------------------------------------------------


TOLD = re.compile(
    r"message (is not JSON|must be) .{1,200}|message is not JSON: .{1,200}|(unknown|duplicate) key ['\"].{0,500}['\"]"
    r"|[-+.\w]+ (is missing|is not a JSON number|is too large a number|is not allowed by this server)"
    r"|-?\w+ (must|holds) .{1,400}"
)
"""What a `BadMessage` says: the field and the limit."""


def try_messages(data: bytes) -> None:
    """Parse a message; the first byte says whether it is binary."""
    text = data[1:].decode(errors="replace")
    try:
        prompt = parse_prompt(data[1:] if data[:1] == b"b" else text, OPTIONS, 300.0)
    except BadMessage as error:
        if not TOLD.fullmatch(str(error)):
            raise Finding(f"an error that does not say what is wrong: {error!r}") from error
        return
    user_line(prompt.prompt)


async def routes(request: Request) -> Response:
    """Answer as the server's own routes do."""
    if request.path not in PAGES:
        raise HttpRefusal(404, "not-found", "nothing is served at this path")
    return json_response(200, {"ok": True})


SITE = Site(routes, frozenset({"/ws/claude"}))


def try_head(data: bytes) -> None:
    """Serve a connection's HTTP."""
    said = run(data, serve_head)
    if not said.startswith(b"HTTP/1.1 ") and said:
        raise Finding(f"the answer is no HTTP: {said[:80]!r}")


async def serve_head(sock: socket.socket) -> None:
    """Serve what comes; what is handed on must be of our own words."""
    handshake = await serve_http(sock, SITE, CONFIG)
    if handshake is not None and not ANSWER.fullmatch(handshake.answer):
        raise Finding(f"an answer of foreign bytes: {handshake.answer!r}")


ANSWER = re.compile(
    rb"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    rb"Sec-WebSocket-Accept: [A-Za-z0-9+/]{27}=\r\n(Sec-WebSocket-Protocol: trio-claude\.v1\r\n)?\r\n"
)
"""What a handshake is answered with."""


ASKED = {
    name: Asked(kind, json.dumps({"request": {"subtype": kind, "input": {"command": "ls"}}}).encode(), 0.0)
    for name, kind in {"q": "can_use_tool", "h": "hook_callback", "m": "mcp_message"}.items()
}


def try_lines(data: bytes) -> None:
    """Rebuild a client's line; what the CLI gets is one line of JSON of a known kind, and stays so if said again."""
    text = data[1:].decode(errors="replace")
    with contextlib.suppress(BadMessage):
        parse_start(text, OPTIONS, 300.0, 300.0)
    try:
        said = parse_object(text)
        if said.get("type") == "gateway":
            parse_op(said)
            return
        line = rebuild(said, ASKED, CONFIG.controls)
    except BadMessage as error:
        if not 0 < len(str(error)) < 2000:
            raise Finding(f"an error that does not say what is wrong: {error!r}") from error
        return
    if line.data.count(b"\n") != 1 or not line.data.endswith(b"\n"):
        raise Finding(f"not one line: {line.data!r}")
    told = json.loads(line.data, parse_constant=lambda name: 1 / 0)
    if told["type"] != line.kind or (line.kind == "user" and told["client_composed"] is not True):
        raise Finding(f"not what it is said to be: {line.data!r}")
    if line.kind == "control_request" and told["request"]["subtype"] not in CONFIG.controls:
        raise Finding(f"a request that is not allowed: {line.data!r}")
    if rebuild(parse_object(line.data.decode()), ASKED, CONFIG.controls).data != line.data:
        raise Finding(f"not the same when it is said again: {line.data!r}")


def try_frames(data: bytes) -> None:
    """Serve a connection's frames."""
    said = run(data, serve_frames)
    answer, _, frames = said.partition(b"\r\n\r\n")
    if not answer.startswith(b"HTTP/1.1 101 ") and said:
        raise Finding(f"the answer is no upgrade: {said[:80]!r}")
    check_frames(frames)


CLOSES = re.compile(rb"(\x03[\xe8-\xf6].*|[\x0b-\x13].*)?", re.DOTALL)
"""What a close of ours holds: nothing where the client's holds nothing, else a code that may be sent."""


def check_frames(data: bytes) -> None:
    """Raise a Finding unless data is whole frames, at most one of them a close, and that the last."""
    at, closed = 0, False
    while at < len(data):
        first, size = data[at], data[at + 1] if at + 1 < len(data) else 255
        if closed or first not in (TEXT, CLOSE, PING, PONG) or size > 125 or at + 2 + size > len(data):
            raise Finding(f"{'behind a close' if closed else 'no frame'}: {data[at : at + 80]!r}")
        if first == CLOSE and not CLOSES.fullmatch(data[at + 2 : at + 2 + size]):
            raise Finding(f"a close that says nothing: {data[at : at + 80]!r}")
        closed, at = first == CLOSE, at + 2 + size


def good_handshake() -> Handshake:
    """Return the handshake of a good client."""
    handshake = check_upgrade(Request("GET", "/ws/claude", {}, dict(HEADERS)), b"")
    assert handshake
    return handshake


HEADERS = [tuple(line.split(": ", 1)) for line in head().decode().split("\r\n")[1:-2]]
HANDSHAKE = good_handshake()


async def serve_frames(sock: socket.socket) -> None:
    """Answer each message at once, refuse the fourth, and stay until the client leaves."""
    async with accept(sock, HANDSHAKE, "", CONFIG, Heart(CONFIG), Turns(), CONFIG.max_message) as peer:
        heard: list[str | bytes] = []
        enough = trio.Event()

        def hear(message: str | bytes) -> None:
            heard.append(message)
            peer.post("heard")
            if len(heard) == 4:
                enough.set()

        peer.listen(hear, enough.set)
        await enough.wait()
        await peer.close(CloseCode.POLICY, "enough")


# -- what is common to both sockets -----------------------------------------------------------------------------------


def run(data: bytes, serve: Callable[[socket.socket], object]) -> bytes:
    """Serve a client who says data; return what it hears."""
    swallowed: list[BaseException] = []
    with watched(swallowed):
        said = trio.run(converse, data, serve, clock=trio.testing.MockClock(autojump_threshold=0))
    if bad := [error for error in swallowed if not isinstance(error, SWALLOWED)]:
        raise Finding(f"swallowed: {bad[0]!r}") from bad[0]
    return said


@contextlib.contextmanager
def watched(swallowed: list[BaseException]) -> Iterator[None]:
    """Note the exceptions for which connections are reset: none that is a bug may hide behind a reset."""
    abort = Wire.abort

    def watch(wire: Wire) -> None:
        swallowed.extend(leaves(sys.exc_info()[1]))
        abort(wire)

    Wire.abort = watch  # type: ignore[method-assign]
    try:
        yield
    finally:
        Wire.abort = abort  # type: ignore[method-assign]


def leaves(error: BaseException | None) -> Iterator[BaseException]:
    """Yield the innermost errors of an exception group."""
    if isinstance(error, BaseExceptionGroup):
        for part in error.exceptions:
            yield from leaves(part)
    elif error is not None:
        yield error


async def converse(data: bytes, serve: Callable[[socket.socket], object]) -> bytes:
    """Say data in as many pieces as its first byte tells, then FIN, while the server serves."""
    ours, theirs = socket.socketpair()
    said = bytearray()
    with ours, theirs:
        ours.setblocking(False)
        theirs.setblocking(False)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(speak, ours, data, said)
            try:
                await serve(theirs)  # type: ignore[misc]
            except* GONE:
                pass
            if theirs.fileno() >= 0:
                theirs.close()
    return bytes(said)


async def speak(sock: socket.socket, data: bytes, said: bytearray) -> None:
    """Be the client."""
    pieces, data = (data[0] % 4 + 1 if data else 1), data[1:]
    with contextlib.suppress(OSError):
        for number in range(pieces):
            sock.send(data[len(data) * number // pieces : len(data) * (number + 1) // pieces])
            if number < pieces - 1:
                await trio.testing.wait_all_tasks_blocked()
        sock.shutdown(socket.SHUT_WR)
    with contextlib.suppress(OSError):
        while True:
            await trio.lowlevel.wait_readable(sock)
            if not (got := sock.recv(65536)):
                return
            said += got


# -- many inputs ------------------------------------------------------------------------------------------------------

TARGETS: dict[str, Callable[[bytes], None]] = {
    "head": try_head,
    "frames": try_frames,
    "messages": try_messages,
    "lines": try_lines,
}
SEEDS: dict[str, list[bytes]] = {
    "head": [
        head(),
        head(sec_websocket_protocol="trio-claude.v1, bearer.x", sec_websocket_extensions="permessage-deflate"),
        head("/ws/claude?frames=verbatim&a=%00", origin="http://localhost:3000"),
        head(host="[::1]:3000"),
        head(host="xn--a\xff.localhost"),
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n" * 3,
        b"HEAD /healthz HTTP/1.0\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\nhi",
        b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\nX: y\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n",
    ],
    "frames": [
        frame(1, b"one", mask=bytes(4)) + frame(2, b"two", mask=bytes(4)) + frame(8, b"\x03\xe8why", mask=bytes(4)),
        frame(1, b"a", fin=False, mask=bytes(4)) + frame(9, b"p", mask=bytes(4)) + frame(0, b"b", mask=bytes(4)),
        frame(9, b"ping", mask=bytes(4)) + frame(10, b"pong", mask=bytes(4)),
        frame(1, b"x" * 300, mask=bytes(4)),
        frame(1, b"x" * 1025, mask=bytes(4)),
        frame(1, b"x", mask=bytes(4)) * 5 + frame(9, b"late", mask=bytes(4)),
        frame(1, b"", fin=False, mask=bytes(4)) + frame(0, b"", fin=False, mask=bytes(4)) * 9,
        frame(8, b"", mask=bytes(4)) + frame(1, b"x", mask=bytes(4)),
        frame(1, "€".encode(), mask=b"abcd"),
        b"\x81\xff" + bytes(12),
        b"\x81\x02{}",
    ],
    "messages": [
        GOOD.encode(),
        b'{"prompt":"\\ud83d\\ude00","meta":"T","timeout":1.5,"max_turns":3,"partial":true,"effort":"low"}',
        b'{"prompt":"x","meta":"T","json_schema":{"type":"object","properties":{"a":[1,2.5e3,null]}}}',
        b'{"prompt":"x","meta":"T","model":"opus","resume":"01234567-89ab-cdef-0123-456789abcdef","workspace":"w"}',
        b'{"prompt":"x","meta":"T","system_prompt":"s","max_budget_usd":0.5,"temperature":1,"max_output_tokens":9}',
        b"[" * 3000,
        b'{"a":NaN,"a":1}',
        b'{"prompt":"x","meta":"T","max_turns":1' + b"0" * 400 + b"}",
    ],
    "lines": [
        b'{"type":"gateway","op":"start","meta":"T","options":{"resume":"01234567-89ab-cdef-0123-456789abcdef","fork":true}}',
        b'{"type":"gateway","op":"stop","mode":"interrupt"}',
        b'{"type":"user","message":{"role":"user","content":[{"type":"text","text":"x","cache_control":{"type":"ephemeral"}}]}}',
        b'{"type":"user","message":{"role":"user","content":[{"type":"image","source":{"type":"base64","media_type":'
        b'"image/png","data":"aGk="}},{"type":"tool_result","tool_use_id":"t","content":"x","is_error":true}]}}',
        b'{"type":"control_request","request_id":"r","request":{"subtype":"initialize","hooks":{"Stop":[{"matcher":null,'
        b'"hookCallbackIds":["a"],"timeout":1.5}]},"sdkMcpServers":["x"]}}',
        b'{"type":"control_request","request_id":"r","request":{"subtype":"set_model","model":"opus"}}',
        b'{"type":"control_response","response":{"subtype":"success","request_id":"q","response":{"behavior":"allow",'
        b'"updatedInput":{"command":"x"}}}}',
        b'{"type":"control_response","response":{"subtype":"success","request_id":"h","response":{"continue":true,'
        b'"hookSpecificOutput":{"hookEventName":"PreToolUse","permissionDecision":"deny"}}}}',
        b'{"type":"control_response","response":{"subtype":"success","request_id":"m","response":{"mcp_response":'
        b'{"jsonrpc":"2.0","id":1,"result":{}}}}}',
        b'{"type":"control_response","response":{"subtype":"error","request_id":"q","error":"x"}}',
    ],
}

WORDS: dict[str, list[str]] = {
    "head": [
        "HTTP/1.1", "HEAD ", "Host: ", "Upgrade: websocket", "Connection: Upgrade", "Transfer-Encoding: chunked",
        "xn--", "Content-Length: ", "Expect: 100-continue", "Origin: ", "/ws/claude", "Sec-WebSocket-Key: ",
    ],
    "frames": ["\x81\x80", "\x88\x82", "\x89\x80", "\x8a\x80", "\x00\x80", "\xff", "\x7f", "\x7e", "\x03\xe8"],
    "messages": [
        "prompt", "meta", *OPTIONS, "1e999", "9" * 60, "NaN", "-Infinity", "\\ud800", "\\u0000",
        "null", "true", '{"', '":', ',"',
    ],
    "lines": [
        "type", "gateway", "op", "start", "stop", "user", "message", "content", "control_request", "control_response",
        "request", "response", "request_id", "subtype", "behavior", "allow", "deny", "updatedInput",
        "updatedPermissions", "hooks", "mcp_set_servers", "tool_result", "1e999", "\\ud800", "null", '{"', '":', ',"',
    ],
}  # fmt: skip
"""What the engine may put into an input."""


class Hunt:
    """Try inputs; print each kind of finding once, and go on."""

    def __init__(self, target: str) -> None:
        self._target = target
        self._found: set[str] = set()

    def __call__(self, data: bytes) -> None:
        """Try one input."""
        try:
            TARGETS[self._target](data)
        except Exception as error:
            if (where := place(error)) not in self._found:
                self._found.add(where)
                told = "".join(traceback.format_exception(error))
                print(f"FINDING {self._target} in {where}\n  --replay {data.hex()}\n{told}", flush=True)


def place(error: Exception) -> str:
    """Return where the innermost error was raised."""
    leaf = next(leaves(error))
    *_, last = traceback.extract_tb(leaf.__traceback__)
    return f"{Path(last.filename).name}:{last.lineno} {type(leaf).__name__} {str(leaf)[:16]}"


def hunt(target: str, seconds: int, seed: int, folder: Path) -> None:
    """Fuzz one target; does not return, for the engine ends the process."""
    corpus = folder / "corpus"
    corpus.mkdir()
    for number, data in enumerate(SEEDS[target]):
        (corpus / str(number)).write_bytes(b"\0" + data)
        (corpus / f"{number}-pieces").write_bytes(b"\2" + data)
    words = folder / "words"
    words.write_text("".join(f'"{escaped(word)}"\n' for word in WORDS[target]))
    limits = [f"-max_total_time={seconds}", f"-seed={seed}", f"-max_len={INPUT_LIMIT}", f"-timeout={SLOW}"]
    outputs = ["-print_final_stats=1", f"-artifact_prefix={folder}/", f"-dict={words}"]
    atheris.Setup([sys.argv[0], str(corpus), *limits, *outputs], Hunt(target))
    atheris.Fuzz()


def escaped(word: str) -> str:
    """Return a word as the engine's dictionaries spell it."""
    return "".join(f"\\x{byte:02x}" for byte in word.encode("latin-1"))


def fuzz(target: str, seconds: int, seed: int) -> bool:
    """Fuzz one target in a process of its own, print what came of it, and return whether nothing was found."""
    words = [sys.executable, __file__, "--target", target, "--seed", str(seed), "--child", str(seconds)]
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        told = subprocess.run([*words, folder], capture_output=True, text=True, errors="replace", check=False)
    count = re.search(r"number_of_executed_units:\s*(\d+)", told.stderr)
    edges = re.findall(r"cov: (\d+)", told.stderr)
    found = told.stdout.count("FINDING ") + (told.returncode != 0)
    executions, covered = count[1] if count else "?", edges[-1] if edges else "?"
    print(f"{target:9} {seconds} s, {executions} executions, {covered} edges, {found} findings", flush=True)
    print(told.stdout, end="", flush=True)
    if told.returncode:
        print(f"the engine ended with status {told.returncode}:\n{told.stderr[-2000:]}")
    return not found


def main() -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", choices=[*TARGETS, "all"], default="all")
    parser.add_argument("--minutes", type=float, default=1.0, help="for all targets together")
    parser.add_argument("--seed", type=int, default=1, help="of the engine")
    parser.add_argument("--replay", help="one input in hex")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    words = parser.parse_args()
    if words.child:
        hunt(words.target, int(words.child[0]), words.seed, Path(words.child[1]))
    names = list(TARGETS) if words.target == "all" else [words.target]
    if words.replay is not None:
        for name in names:
            TARGETS[name](bytes.fromhex(words.replay))
        return 0
    seconds = max(1, round(words.minutes * 60 / len(names)))
    sound = [fuzz(name, seconds, words.seed) for name in names]
    return 0 if all(sound) else 1


if __name__ == "__main__":
    sys.exit(main())
