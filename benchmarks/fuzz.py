"""Coverage-guided fuzzing of what a client's bytes reach first; needs `pip install atheris`.

    python benchmarks/fuzz.py --target head|frames|messages|all --minutes N

The invariant is h11's: input is accepted, or raises our error, never another. `head` feeds `serve_http`, `frames` feeds
`accept` behind a good handshake; both through a socket pair and on virtual time, the input in one piece or in several,
then a FIN. `messages` feeds `parse_prompt`. What the server says is read back: whole answers, whole frames, nothing
behind a close. `--minutes` are divided among the targets. The exit status is 0 where nothing was found; `--replay HEX`
runs one input again, with a traceback.
"""

from __future__ import annotations

import argparse
import contextlib
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

with atheris.instrument_imports(include=["trio_claude", "h11", "wsproto", "trio_websocket"]):
    import h11
    import trio
    import trio.testing
    import wsproto
    from trio_websocket import ConnectionClosed, HandshakeError
    from wsproto.frame_protocol import CloseReason, FrameProtocol, Opcode

    from trio_claude.api import PAGES
    from trio_claude.config import OPTIONS, Config
    from trio_claude.errors import BadMessage, CloseCode, HttpRefusal, PeerGone
    from trio_claude.messages import parse_prompt
    from trio_claude.peer import Wire, accept
    from trio_claude.stream_json import user_line
    from trio_claude.upgrade import Handshake, Request, Response, Site, check_upgrade, json_response, serve_http

from harness import head
from hostile import GOOD, frame

GONE = (OSError, PeerGone, trio.BrokenResourceError, trio.ClosedResourceError)
"""What `connection` takes for a client that left."""
SWALLOWED = (*GONE, ConnectionClosed, HandshakeError, wsproto.utilities.LocalProtocolError)
"""What trio-websocket may raise in a connection's own nursery; the last for a ping that crosses our close."""
CONFIG = Config(max_message=1024, max_frames=8, ping_interval=3600, head_limit=2048)
INPUT_LIMIT = 4096
SLOW = 20
"""Seconds after which one input is a finding."""
SHOWN = 400
"""Bytes of an input that are printed in hex."""


class Finding(Exception):
    """The invariant does not hold."""


# -- one input --------------------------------------------------------------------------------------------------------


def try_messages(data: bytes) -> None:
    """Parse a message; the first byte says whether it is binary."""
    text = data[1:].decode(errors="replace")
    try:
        prompt = parse_prompt(data[1:] if data[:1] == b"b" else text, OPTIONS, 300.0)
    except BadMessage as error:
        if "\n" in str(error) or len(str(error).encode()) > 1000:
            raise Finding(f"an error no client should read: {error!r}") from error
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
    if handshake is not None:
        if not re.fullmatch(rb"[\x20-\x7e\r\n]{1,400}", handshake.data):
            raise Finding(f"a handshake of foreign bytes: {handshake.data!r}")
        h11.Connection(h11.SERVER).receive_data(handshake.data)


def try_frames(data: bytes) -> None:
    """Serve a connection's frames."""
    said = run(data, serve_frames)
    answer, _, frames = said.partition(b"\r\n\r\n")
    if not answer.startswith(b"HTTP/1.1 101 ") and said:
        raise Finding(f"the answer is no upgrade: {said[:80]!r}")
    check_frames(frames)


def check_frames(data: bytes) -> None:
    """Raise a Finding unless data is whole frames, at most one of them a close, and that the last."""
    protocol = FrameProtocol(client=True, extensions=[])
    protocol.receive_bytes(data)
    try:
        frames = list(protocol.received_frames())
    except Exception as error:
        raise Finding(f"frames that a client can't read: {error!r}: {data[-80:]!r}") from error
    closes = [place for place, found in enumerate(frames, 1) if found.opcode is Opcode.CLOSE]
    if closes not in ([], [len(frames)]):
        raise Finding(f"something follows a close: {frames!r:.200}")
    if closes and not isinstance(frames[-1].payload, tuple):
        raise Finding(f"a close without a code: {frames[-1]!r}")
    if closes and frames[-1].payload[0] is CloseReason.INTERNAL_ERROR:
        raise Finding(f"closed for an internal error: {frames[-1]!r}")


def good_handshake() -> Handshake:
    """Return the handshake of a good client."""
    handshake = check_upgrade(Request("GET", "/ws/claude", {}, dict(HEADERS)), b"")
    assert handshake
    return handshake


HEADERS = [tuple(line.split(": ", 1)) for line in head().decode().split("\r\n")[1:-2]]
HANDSHAKE = good_handshake()


async def serve_frames(sock: socket.socket) -> None:
    """Answer each message at once, refuse the fourth, and stay until the client leaves."""
    async with accept(sock, HANDSHAKE, CONFIG) as peer:
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
        while True:
            await trio.lowlevel.wait_readable(sock)
            if not (got := sock.recv(65536)):
                return
            said += got


# -- many inputs ------------------------------------------------------------------------------------------------------

TARGETS: dict[str, Callable[[bytes], None]] = {"head": try_head, "frames": try_frames, "messages": try_messages}
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
    ],
}


class Hunt:
    """Try inputs; print each kind of finding once, and go on."""

    def __init__(self, target: str) -> None:
        self._target = target
        self._found: set[str] = set()

    def __call__(self, data: bytes) -> None:
        try:
            TARGETS[self._target](data)
        except Exception as error:
            kind = f"{type(error).__name__}: {error}"[:60]
            if kind not in self._found:
                self._found.add(kind)
                told = "".join(traceback.format_exception(error))
                print(f"FINDING {self._target}: {error!r:.200}\n  --replay {data.hex()}\n{told}", flush=True)


def hunt(target: str, seconds: int, seed: int) -> None:
    """Fuzz one target; does not return, for the engine ends the process."""
    with tempfile.TemporaryDirectory(prefix="fuzz-") as corpus:
        for number, data in enumerate(SEEDS[target]):
            (Path(corpus) / str(number)).write_bytes(b"\0" + data)
            (Path(corpus) / f"{number}-pieces").write_bytes(b"\2" + data)
        limits = [f"-max_total_time={seconds}", f"-seed={seed}", f"-max_len={INPUT_LIMIT}", f"-timeout={SLOW}"]
        words = [sys.argv[0], corpus, *limits, "-print_final_stats=1", f"-artifact_prefix={corpus}-", "-verbosity=1"]
        atheris.Setup(words, Hunt(target))
        atheris.Fuzz()


def fuzz(target: str, seconds: int, seed: int) -> bool:
    """Fuzz one target in a process of its own, print what came of it, and return whether nothing was found."""
    words = [sys.executable, __file__, "--target", target, "--seed", str(seed), "--child", str(seconds)]
    told = subprocess.run(
        words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace", check=False
    )
    count = re.search(r"number_of_executed_units:\s*(\d+)", told.stderr)
    edges = re.findall(r"cov: (\d+)", told.stderr)
    found = told.stdout.count("FINDING ") + (told.returncode != 0)
    print(
        f"{target:9} {seconds} s, {count[1] if count else '?'} executions, {edges[-1] if edges else '?'} edges, {found} findings"
    )
    print(told.stdout, end="")
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
    parser.add_argument("--child", type=int, help=argparse.SUPPRESS)
    words = parser.parse_args()
    if words.child:
        hunt(words.target, words.child, words.seed)
    names = list(TARGETS) if words.target == "all" else [words.target]
    if words.replay is not None:
        for name in names:
            TARGETS[name](bytes.fromhex(words.replay))
        return 0
    seconds = max(1, round(words.minutes * 60 / len(names)))
    return 0 if all([fuzz(name, seconds, words.seed) for name in names]) else 1


if __name__ == "__main__":
    sys.exit(main())
