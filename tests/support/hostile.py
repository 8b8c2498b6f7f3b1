"""Hostile clients: named families, each one bounded connection to a server on the loopback address.

A family takes a port and a random generator, and what it does follows from the generator alone. It waits `WAIT` seconds
at most, gives its socket back, and never raises for what the server does to it. Nothing here looks at the answers: what
a right answer is stands in the tests of each room; what these show is that nothing else suffers.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import json
import random
import socket
import struct
from collections.abc import Awaitable, Callable

import trio
from harness import UPGRADE, directive, head

WAIT = 1.0
"""Seconds that one connection may take."""
PATIENCE = 0.25
"""Seconds that a client reads on, at the end, where the server keeps the connection."""
TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10
GOOD = json.dumps({"prompt": "hi", "meta": "HOSTILE"})
SILENT = json.dumps({"prompt": directive("silent"), "meta": "HOSTILE"})
GET = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"

Rng = random.Random
Family = Callable[[int, Rng], Awaitable[None]]


class Client:
    """One TCP connection, with the ways of leaving that a polite client does not use."""

    def __init__(self, sock: trio.socket.SocketType) -> None:
        self._sock = sock

    async def say(self, data: bytes) -> None:
        with memoryview(data) as view:
            sent = 0
            while sent < len(view):
                sent += await self._sock.send(view[sent:])

    async def say_in_pieces(self, data: bytes, rng: Rng, pieces: int = 4) -> None:
        """Send data cut at random bytes."""
        cuts = sorted(rng.randrange(len(data) + 1) for _ in range(pieces))
        for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True):
            await self.say(data[start:end])
            await trio.lowlevel.checkpoint()

    async def hear(self, seconds: float = PATIENCE) -> None:
        """Read to the server's end, or for a while."""
        with trio.move_on_after(seconds):
            while await self._sock.recv(65536):
                pass

    async def hear_until(self, mark: bytes) -> None:
        """Read until `mark` was said, or to the server's end."""
        said = b""
        while mark not in said and (data := await self._sock.recv(65536)):
            said += data

    def reset(self) -> None:
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._sock.close()

    def finish(self) -> None:
        self._sock.shutdown(socket.SHUT_WR)

    async def open(self, rng: Rng, path: str = "/ws/claude") -> None:
        """Open a WebSocket; what follows is sent behind the server's greeting, or along with the handshake."""
        await self.say(head(path))
        if rng.random() < 0.7:
            await self.hear_until(b"}")

    async def end(self, rng: Rng) -> None:
        """Leave: by a reset, a close with or without a FIN first, or when the server has said its last."""
        how = rng.choice(("reset", "close", "finish", "finish", "hear", "hear"))
        if how == "reset":
            self.reset()
        elif how == "finish":
            self.finish()
            await self.hear()
        elif how == "hear":
            await self.hear()


FAMILIES: dict[str, Family] = {}
"""Every family by its name."""
RUNS: set[str] = set()
"""Those that start a CLI; they cost most."""
CRASHES: dict[str, str] = {}
"""Those after which a Crashed event is known and why; none is."""


def family(attack: Callable[[Client, Rng], Awaitable[None]]) -> Family:
    """Make a family of what is done on one connection."""

    @functools.wraps(attack)
    async def connect(port: int, rng: Rng) -> None:
        with trio.move_on_after(WAIT), contextlib.suppress(OSError), trio.socket.socket() as sock:
            await sock.connect(("127.0.0.1", port))
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await attack(Client(sock), rng)

    FAMILIES[attack.__name__] = connect
    return connect


def running(attack: Family) -> Family:
    """Mark a family that starts a CLI."""
    RUNS.add(attack.__name__)  # type: ignore[attr-defined]
    return attack


# -- credentials ------------------------------------------------------------------------------------------------------


def b64(said: object) -> str:
    data = said if isinstance(said, bytes) else json.dumps(said).encode()
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def forged(rng: Rng) -> str:
    """Return a token with something wrong: unsigned, signed by nobody, with a header that leads elsewhere."""
    header = {
        "alg": rng.choice(["none", "HS256", "RS256", "ES256"]),
        "kid": rng.choice(["a", "../../etc/passwd", "' OR 1=1", ["a"], None]),
        **rng.choice([{}, {"jku": "http://127.0.0.1:1/"}, {"jwk": {"kty": "oct", "k": "AAAA"}}, {"crit": ["exp"]}]),
    }
    claims = {"iss": "i", "aud": "a", "sub": rng.choice(["root", "a" * 4000, 7, None]), "exp": 4_000_000_000}
    return f"{b64(header)}.{b64(claims)}.{b64(rng.randbytes(rng.choice([0, 32, 256])))}"


@family
async def wrong_key(client: Client, rng: Rng) -> None:
    """A key that nobody has: random, cut, huge, or of bytes from 0x80 on."""
    key = rng.choice((f"tck_{b64(rng.randbytes(32))}", "tck_", "", f"tck_{'A' * 12000}", latin(rng)))
    await client.say(head(authorization=f"{rng.choice(('Bearer', 'bearer', 'Basic', ''))} {key}"))
    await client.end(rng)


@family
async def forged_token(client: Client, rng: Rng) -> None:
    """A token that nobody signed."""
    await client.say(head(rng.choice(("/ws/claude", "/ws/session")), authorization=f"Bearer {forged(rng)}"))
    await client.end(rng)


@family
async def guessed_ticket(client: Client, rng: Rng) -> None:
    """Subprotocols full of tickets and keys, one or hundreds."""
    guesses = [f"{rng.choice(('ticket', 'bearer'))}.{b64(rng.randbytes(32))}" for _ in range(rng.choice((1, 2, 200)))]
    await client.say(head(sec_websocket_protocol=", ".join(["trio-claude.v1", *guesses])))
    await client.end(rng)


@family
async def ticket_flood(client: Client, rng: Rng) -> None:
    """Hundreds of tickets asked for on one connection, without a wait."""
    one = f"POST /api/ticket HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {forged(rng)}\r\nContent-Length: 0\r\n\r\n"
    await client.say(one.encode() * rng.choice((1, 300)))
    await client.end(rng)


@family
async def preflight_flood(client: Client, rng: Rng) -> None:
    """Hundreds of questions whether a page may ask, from origins that may not."""
    origin = rng.choice(("null", "https://evil.example", "http://localhost:3000"))
    one = f"OPTIONS /api/ticket HTTP/1.1\r\nHost: localhost:3000\r\nOrigin: {origin}\r\nAccess-Control-Request-Method: POST\r\n\r\n"
    await client.say(one.encode() * rng.choice((1, 300)))
    await client.end(rng)


# -- heads ------------------------------------------------------------------------------------------------------------


def latin(rng: Rng, size: int = 12) -> str:
    """Return characters of which each is a byte from 0x80 on."""
    return "".join(chr(rng.randrange(0x80, 0x100)) for _ in range(size))


def changed(name: str, value: str) -> bytes:
    return head(**{name.replace("-", "_"): value})


@family
async def non_ascii_host(client: Client, rng: Rng) -> None:
    """A handshake whose Host holds bytes from 0x80 on, alone or in a good name."""
    await client.say(
        changed("host", rng.choice((latin(rng), f"local{latin(rng, 1)}host:3000", f"localhost:{latin(rng)}")))
    )
    await client.end(rng)


@family
async def non_ascii_connection(client: Client, rng: Rng) -> None:
    """A handshake whose Connection holds bytes from 0x80 on beside the token."""
    await client.say(changed("connection", f"Upgrade, {latin(rng)}"))
    await client.end(rng)


@family
async def non_ascii_protocol(client: Client, rng: Rng) -> None:
    """A handshake that offers a subprotocol of bytes from 0x80 on."""
    await client.say(changed("sec-websocket-protocol", f"trio-claude.v1, {latin(rng)}"))
    await client.end(rng)


@family
async def non_ascii_extensions(client: Client, rng: Rng) -> None:
    """A handshake that offers an extension of bytes from 0x80 on, or one with bad parameters."""
    offers = (latin(rng), f"permessage-deflate; {latin(rng)}={latin(rng)}", "permessage-deflate; =;;,=,", ",;" * 200)
    await client.say(changed("sec-websocket-extensions", rng.choice(offers)))
    await client.end(rng)


@family
async def bad_punycode_host(client: Client, rng: Rng) -> None:
    """A Host with labels that look like punycode and are none, are long, or are many."""
    labels = (f"xn--{latin(rng)}", "xn--", "xn--\x80", "xn--999999999", f"xn--{'a' * 4000}", ".".join(["xn--a"] * 300))
    await client.say(changed("host", f"{rng.choice(labels)}.localhost"))
    await client.end(rng)


@family
async def odd_host(client: Client, rng: Rng) -> None:
    """A Host that is empty, twice there, an address in brackets that is none, or has a bad port."""
    hosts = (
        "",
        "[",
        "[::1",
        "[::1]:x",
        ":",
        "localhost:99999999",
        "localhost:3000\r\nHost: evil",
        "localhost\t",
        "@localhost",
    )
    await client.say(changed("host", rng.choice(hosts)))
    await client.end(rng)


@family
async def bad_origin(client: Client, rng: Rng) -> None:
    """An Origin of another site, of none, of strange bytes, or two of them."""
    origins = (
        "null",
        "http://evil.example",
        latin(rng),
        "http://localhost:3000\r\nOrigin: http://evil.example",
        "//",
        "",
    )
    await client.say(changed("origin", rng.choice(origins)))
    await client.end(rng)


@family
async def get_then_reset(client: Client, rng: Rng) -> None:
    """Plain GETs, then a reset with the answers unread."""
    await client.say(GET * rng.randint(1, 20))
    await trio.sleep(rng.choice((0, 0, 0.005)))
    client.reset()


@family
async def garbage_then_reset(client: Client, rng: Rng) -> None:
    """Random bytes with or without line ends, then a reset."""
    await client.say(rng.randbytes(rng.randint(1, 3000)) + rng.choice((b"", b"\r\n\r\n")))
    await trio.sleep(rng.choice((0, 0, 0.005)))
    client.reset()


@family
async def garbage(client: Client, rng: Rng) -> None:
    """Random bytes in lines, and any way of leaving."""
    await client.say_in_pieces(b"\r\n".join(rng.randbytes(rng.randint(0, 80)) for _ in range(8)) + b"\r\n\r\n", rng)
    await client.end(rng)


@family
async def vanish_by_reset(client: Client, rng: Rng) -> None:
    """Connect, say nothing, reset."""
    await trio.sleep(rng.choice((0, 0.005)))
    client.reset()


@family
async def vanish_by_fin(client: Client, rng: Rng) -> None:
    """Connect, say nothing, send a FIN."""
    await trio.sleep(rng.choice((0, 0.005)))
    client.finish()
    await client.hear()


@family
async def vanish_in_silence(client: Client, rng: Rng) -> None:
    """Connect, say nothing for a while, and close."""
    await trio.sleep(rng.uniform(0, PATIENCE))


@family
async def oversized_head(client: Client, rng: Rng) -> None:
    """A head over the limit: in one header, in its target, or without an end."""
    big = b"x" * rng.choice((16_000, 16_384, 17_000, 100_000))
    shapes = (
        b"GET /ws/claude HTTP/1.1\r\nHost: localhost\r\nX: " + big + b"\r\n\r\n",
        b"GET /" + big + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\n" + big,
        big,
    )
    await client.say_in_pieces(rng.choice(shapes), rng)
    await client.end(rng)


@family
async def header_flood(client: Client, rng: Rng) -> None:
    """Hundreds of small headers: the same, different, or those that are joined and split."""
    line = rng.choice(("a: b", "n{}: x", "Connection: Upgrade,,,", "Sec-WebSocket-Protocol: p{}", "Upgrade: websocket"))
    lines = [line.format(number) for number in range(rng.randint(100, 1500))]
    await client.say(head().removesuffix(b"\r\n") + "\r\n".join(lines).encode() + b"\r\n\r\n")
    await client.end(rng)


@family
async def bad_key(client: Client, rng: Rng) -> None:
    """A Sec-WebSocket-Key that is empty, short, long, no base64, in other letters, or twice there."""
    good = UPGRADE["sec-websocket-key"]
    keys = (
        "",
        "short",
        good * 2,
        "?" * 22 + "==",
        latin(rng, 24),
        good[:-2],
        f"{good}\r\nSec-WebSocket-Key: {good}",
        f"{good} ;",
    )
    await client.say(changed("sec-websocket-key", rng.choice(keys)))
    await client.end(rng)


@family
async def bad_version(client: Client, rng: Rng) -> None:
    """A WebSocket version that is not 13."""
    await client.say(
        changed("sec-websocket-version", rng.choice(("", "8", "14", "13, 8", "013", "١٣".encode().decode("latin-1"))))
    )
    await client.end(rng)


@family
async def bad_upgrade(client: Client, rng: Rng) -> None:
    """An upgrade to something else, by another method, without its token, or at a path that takes none."""
    heads = (
        head(upgrade="h2c"), head(upgrade="websocket, h2c"), head(connection="close"), head(connection=None),
        head(method="POST"), head(method="CONNECT"), head("/"), head("/healthz"), head("/ws/claude/"), head("//ws/claude"),
        head("/ws/claude?frames=verbatim&frames=%ff&" + "a=b&" * 400), head("/ws/claude#x"), head("*"),
    )  # fmt: skip
    await client.say(rng.choice(heads))
    await client.end(rng)


@family
async def odd_request(client: Client, rng: Rng) -> None:
    """Request lines and headers that parsers disagree on."""
    heads = (
        b"GET / HTTP/1.1\nHost: localhost\n\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\n folded\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost : localhost\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nX: a\0b\r\n\r\n",
        b"GET  /  HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /%00%ff%zz?%=%&&== HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"OPTIONS * HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"CONNECT localhost:80 HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"TRACE / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET http://localhost/ HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"HEAD / HTTP/1.1\r\nHost: localhost\r\n\r\n" * 3,
        b"GET / HTTP/9.9\r\nHost: localhost\r\n\r\n",
        b"\r\n" * rng.randint(1, 5000),
    )
    await client.say(rng.choice(heads))
    await client.end(rng)


@family
async def refused_head(client: Client, rng: Rng) -> None:
    """A HEAD that is refused, at its line, a header, its size or its body; the answer must have no body."""
    heads = (
        b"HEAD x HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"HEAD / HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n",
        b"HEAD /" + b"x" * 17_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"HEAD / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HEAD / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 70000\r\n\r\n" + b"x" * 70_000,
        b"HEAD /none HTTP/1.1\r\nHost: localhost\r\n\r\n",
        head(method="HEAD"),
    )
    await client.say(rng.choice(heads))
    await client.end(rng)


@family
async def chunked_body(client: Client, rng: Rng) -> None:
    """Bodies in chunks: good, cut, too long, with sizes that are none, with trailers, or on a handshake."""
    start = rng.choice((b"POST / HTTP/1.1\r\nHost: localhost\r\n", head().removesuffix(b"\r\n")))
    bodies = (
        b"2\r\nhi\r\n0\r\n\r\n",
        b"2\r\nh",
        b"zz\r\n",
        b"-1\r\n",
        b"f" * 40 + b"\r\n",
        b"0\r\nX: y\r\n\r\n",
        b"10000\r\n" + b"x" * 65536 * 2,
    )
    await client.say(start + b"Transfer-Encoding: chunked\r\n\r\n" + rng.choice(bodies))
    await client.end(rng)


@family
async def bad_body_length(client: Client, rng: Rng) -> None:
    """Content-Length that is none, huge, twice there, more than comes, or beside Transfer-Encoding."""
    lengths = (
        "-1",
        "x",
        "9" * 30,
        "5\r\nContent-Length: 6",
        "10",
        "70000",
        "2\r\nTransfer-Encoding: chunked",
        "1e3",
        "٣".encode().decode("latin-1"),
    )
    await client.say(
        head("/", method="POST", upgrade=None, connection=None, content_length=rng.choice(lengths)) + b"hi"
    )
    await client.end(rng)


@family
async def unknown_transfer_encoding(client: Client, rng: Rng) -> None:
    """Transfer-Encoding and Expect that are not served here."""
    name, value = rng.choice(
        (
            ("transfer_encoding", "gzip, chunked"),
            ("transfer_encoding", latin(rng)),
            ("expect", "100-continue"),
            ("expect", "x"),
        )
    )
    await client.say(head("/", method="POST", content_length="2" if name == "expect" else None, **{name: value}))
    await client.end(rng)


@family
async def pipelined_garbage(client: Client, rng: Rng) -> None:
    """Good requests with garbage behind them, in one write or several."""
    await client.say_in_pieces(GET * rng.randint(1, 30) + rng.randbytes(rng.randint(1, 2000)) + b"\r\n\r\n", rng)
    await client.end(rng)


@family
async def unread_answers(client: Client, rng: Rng) -> None:
    """Hundreds of requests for the page, of which no answer is read."""
    with trio.move_on_after(PATIENCE):
        await client.say(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n" * rng.randint(50, 300))
    client.reset()


@family
async def http_1_0(client: Client, rng: Rng) -> None:
    """HTTP/1.0, with and without a Host, plain and as a handshake."""
    heads = (
        b"GET / HTTP/1.0\r\n\r\n",
        b"GET /healthz HTTP/1.0\r\nHost: localhost\r\n\r\n",
        head().replace(b"HTTP/1.1", b"HTTP/1.0"),
    )
    await client.say(rng.choice(heads))
    await client.end(rng)


@family
async def http_0_9(client: Client, rng: Rng) -> None:
    """A request line without a version."""
    await client.say(rng.choice((b"GET /\r\n", b"GET /\r\n\r\n", b"GET /\n")))
    await client.end(rng)


@family
async def http_2_preface(client: Client, rng: Rng) -> None:
    """The preface of HTTP/2 and a SETTINGS frame."""
    await client.say(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\x04\0\0\0\0\0" * rng.randint(0, 5))
    await client.end(rng)


@family
async def tls_hello(client: Client, rng: Rng) -> None:
    """The first record of TLS."""
    hello = b"\x01\x00\x00\xfc\x03\x03" + rng.randbytes(248)
    await client.say(b"\x16\x03\x01" + struct.pack("!H", len(hello)) + hello)
    await client.end(rng)


@family
async def dribbled_head(client: Client, rng: Rng) -> None:
    """A handshake byte by byte, left off somewhere."""
    data = head()
    for at in range(rng.randrange(len(data))):
        await client.say(data[at : at + 1])
    await client.end(rng)


@family
async def flipped_head(client: Client, rng: Rng) -> None:
    """A handshake in which one to three bytes are others."""
    await client.say(flipped(head(), rng, rng.randint(1, 3)))
    await client.end(rng)


# -- frames -----------------------------------------------------------------------------------------------------------


def frame(
    opcode: int,
    payload: bytes = b"",
    *,
    fin: bool = True,
    bits: int = 0,
    mask: bytes | None = b"\x37\xfa\x21\x3d",
    size: bytes | None = None,
) -> bytes:
    """Return a client's frame; `size` stands in for the bytes of its length."""
    if size is None:
        size = length(len(payload))
    first = opcode | bits | (0x80 if fin else 0)
    second = size[0] | (0x80 if mask is not None else 0)
    return bytes((first, second)) + size[1:] + (masked(payload, mask) if mask is not None else payload)


def masked(payload: bytes, mask: bytes) -> bytes:
    """Return the mask and what it makes of a payload."""
    if not payload:
        return mask
    stream = (mask * (len(payload) // 4 + 1))[: len(payload)]
    return mask + (int.from_bytes(payload, "big") ^ int.from_bytes(stream, "big")).to_bytes(len(payload), "big")


def length(size: int) -> bytes:
    """Return the shortest bytes of a length."""
    if size < 126:
        return bytes((size,))
    return struct.pack("!BH", 126, size) if size < 65536 else struct.pack("!BQ", 127, size)


def flipped(data: bytes, rng: Rng, count: int = 1) -> bytes:
    """Return data in which up to `count` bytes are others."""
    found = bytearray(data)
    for _ in range(count):
        found[rng.randrange(len(found))] = rng.randrange(256)
    return bytes(found)


async def attack_frames(client: Client, rng: Rng, data: bytes) -> None:
    """Open a WebSocket, send bytes, whole or in pieces, and leave somehow."""
    await client.open(rng)
    if rng.random() < 0.5:
        await client.say(data)
    else:
        await client.say_in_pieces(data, rng)
    await client.end(rng)


@family
async def reserved_opcode(client: Client, rng: Rng) -> None:
    """A data or control frame of an opcode that has no meaning."""
    await attack_frames(
        client, rng, frame(rng.choice((3, 4, 5, 6, 7, 11, 12, 13, 14, 15)), rng.randbytes(rng.randint(0, 200)))
    )


@family
async def reserved_bits(client: Client, rng: Rng) -> None:
    """A frame of any kind with reserved bits set."""
    await attack_frames(
        client, rng, frame(rng.choice((0, TEXT, BINARY, CLOSE, PING, PONG)), b"x", bits=rng.randrange(1, 8) << 4)
    )


@family
async def unmasked_frame(client: Client, rng: Rng) -> None:
    """A frame without a mask, as only a server may send it."""
    await attack_frames(client, rng, frame(rng.choice((TEXT, BINARY, CLOSE, PING)), GOOD.encode()[:100], mask=None))


@family
async def bad_length(client: Client, rng: Rng) -> None:
    """A length in more bytes than it needs, or one that is not what follows."""
    sizes = (
        struct.pack("!BH", 126, 5),
        struct.pack("!BQ", 127, 5),
        struct.pack("!BQ", 127, 300),
        struct.pack("!BH", 126, 65535),
        b"\x00",
        b"\x04",
    )
    await attack_frames(client, rng, frame(rng.choice((TEXT, BINARY, PING)), b"hello", size=rng.choice(sizes)))


@family
async def huge_length(client: Client, rng: Rng) -> None:
    """A 64-bit length that is over every limit, or has its highest bit set."""
    size = rng.choice((65537, 2**31, 2**32, 2**53, 2**63 - 1, 2**63, 2**64 - 1))
    await attack_frames(
        client,
        rng,
        frame(rng.choice((TEXT, BINARY, CLOSE, PING)), rng.randbytes(1000), size=struct.pack("!BQ", 127, size)),
    )


@family
async def oversized_control(client: Client, rng: Rng) -> None:
    """A control frame of more than 125 bytes."""
    await attack_frames(
        client, rng, frame(rng.choice((CLOSE, PING, PONG)), b"x" * rng.choice((126, 127, 5000, 70_000)))
    )


@family
async def fragmented_control(client: Client, rng: Rng) -> None:
    """A control frame that says that more of it follows."""
    kind = rng.choice((CLOSE, PING, PONG))
    await attack_frames(client, rng, frame(kind, b"ab", fin=False) + frame(0, b"cd"))


@family
async def stray_continuation(client: Client, rng: Rng) -> None:
    """A continuation where nothing was begun, last or not."""
    await attack_frames(client, rng, frame(0, b"x" * rng.randint(0, 300), fin=rng.random() < 0.5))


@family
async def interleaved_messages(client: Client, rng: Rng) -> None:
    """A message that begins inside another, with or without pings between."""
    between = frame(PING, b"p") * rng.randint(0, 3)
    await attack_frames(
        client, rng, frame(TEXT, b"a", fin=False) + between + frame(rng.choice((TEXT, BINARY)), b"b") + frame(0, b"c")
    )


@family
async def empty_fragment_flood(client: Client, rng: Rng) -> None:
    """Thousands of empty fragments of one message."""
    await attack_frames(
        client, rng, frame(TEXT, b"", fin=False) + frame(0, b"", fin=False) * rng.choice((500, 1100, 20_000))
    )


@family
async def tiny_fragments(client: Client, rng: Rng) -> None:
    """A good message in fragments of a byte or two, never ended."""
    data = GOOD.encode()
    parts = [frame(0 if at else TEXT, data[at : at + 2], fin=False) for at in range(0, len(data), 2)]
    await attack_frames(client, rng, b"".join(parts))


@family
async def truncated_frame_then_reset(client: Client, rng: Rng) -> None:
    """A frame cut at a random byte, then a reset."""
    data = frame(rng.choice((TEXT, BINARY, CLOSE, PING)), b"x" * rng.choice((0, 5, 100, 125)))
    await client.open(rng)
    await client.say(data[: rng.randrange(len(data))])
    await trio.sleep(rng.choice((0, 0.005)))
    client.reset()


@family
async def truncated_frame_then_fin(client: Client, rng: Rng) -> None:
    """A frame cut at a random byte, then a FIN."""
    data = frame(rng.choice((TEXT, BINARY, CLOSE, PING)), b"x" * rng.choice((0, 5, 100, 125)))
    await client.open(rng)
    await client.say(data[: rng.randrange(len(data))])
    client.finish()
    await client.hear()


@family
async def ping_flood(client: Client, rng: Rng) -> None:
    """Thousands of pings, whose pongs are read or not."""
    await client.open(rng)
    with trio.move_on_after(PATIENCE):
        await client.say(frame(PING, rng.randbytes(rng.choice((0, 4, 125)))) * rng.randint(100, 5000))
    await client.end(rng)


@family
async def pong_flood(client: Client, rng: Rng) -> None:
    """Thousands of pongs that nobody asked for."""
    await client.open(rng)
    with trio.move_on_after(PATIENCE):
        await client.say(frame(PONG, rng.randbytes(rng.choice((0, 4, 125)))) * rng.randint(100, 5000))
    await client.end(rng)


@family
async def ping_crosses_close(client: Client, rng: Rng) -> None:
    """A message that makes the server close, with pings that cross its close frame."""
    await client.open(rng)
    await client.say(frame(TEXT, b"nonsense") + frame(PING, b"crossing") * rng.randint(1, 50))
    await trio.sleep(rng.choice((0, 0.005)))
    await client.say(frame(PING, b"late") * rng.randint(1, 5))
    await client.end(rng)


@family
async def close_with_bad_code(client: Client, rng: Rng) -> None:
    """A close with a code that must not be sent, or has no meaning."""
    code = rng.choice((0, 1, 999, 1004, 1005, 1006, 1012, 1015, 1016, 1100, 2000, 2999, 5000, 65535))
    await attack_frames(client, rng, frame(CLOSE, struct.pack("!H", code) + b"why" * rng.randint(0, 3)))


@family
async def close_with_bad_text(client: Client, rng: Rng) -> None:
    """A close whose reason is no UTF-8, or is cut inside a character."""
    await attack_frames(
        client,
        rng,
        frame(
            CLOSE, b"\x03\xe8" + rng.choice((b"\xff\xfe", b"\xe2\x82", b"\xed\xa0\x80", latin(rng).encode("latin-1")))
        ),
    )


@family
async def close_of_one_byte(client: Client, rng: Rng) -> None:
    """A close with half a code."""
    await attack_frames(client, rng, frame(CLOSE, rng.randbytes(1)))


@family
async def data_after_close(client: Client, rng: Rng) -> None:
    """A close, then messages, pings or garbage."""
    later = rng.choice(
        (frame(TEXT, GOOD.encode()), frame(PING, b"x") * 20, rng.randbytes(3000), frame(TEXT, b"x" * 125) * 2000)
    )
    await attack_frames(client, rng, frame(CLOSE, b"\x03\xe8") + later)


@family
async def two_closes(client: Client, rng: Rng) -> None:
    """Several closes, alike or not."""
    codes = [struct.pack("!H", rng.choice((1000, 1001, 1002, 3000))) for _ in range(rng.randint(2, 20))]
    await attack_frames(client, rng, b"".join(frame(CLOSE, code) for code in codes))


@family
async def text_that_is_not_utf8(client: Client, rng: Rng) -> None:
    """A text message that is no UTF-8, in one frame or cut inside a character."""
    bad = rng.choice((b"\xff", b"\xc0\xaf", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xe2\x82"))
    datas = (
        frame(TEXT, b'{"prompt":"' + bad + b'"}'),
        frame(TEXT, b"a" + bad[:1], fin=False) + frame(0, bad[1:] + b"z"),
    )
    await attack_frames(client, rng, rng.choice(datas))


@family
async def random_frames(client: Client, rng: Rng) -> None:
    """Frames of any opcode, bits, mask and length."""
    frames = [
        frame(rng.randrange(16), rng.randbytes(rng.randrange(140)), fin=rng.random() < 0.7, bits=rng.choice((0, 0, 0, 64)), mask=rng.choice((rng.randbytes(4), None)))
        for _ in range(rng.randint(1, 30))
    ]  # fmt: skip
    await attack_frames(client, rng, b"".join(frames))


@family
async def garbage_frames(client: Client, rng: Rng) -> None:
    """Random bytes where frames should be."""
    await attack_frames(client, rng, rng.randbytes(rng.randint(1, 5000)))


@family
async def http_behind_the_handshake(client: Client, rng: Rng) -> None:
    """A handshake, then HTTP again, or a second handshake."""
    await attack_frames(client, rng, rng.choice((GET, head())) * rng.randint(1, 3))


# -- messages ---------------------------------------------------------------------------------------------------------


async def attack_message(client: Client, rng: Rng, message: str | bytes, *, kind: int = TEXT) -> None:
    """Say one message, in one frame or two, and leave somehow."""
    data = message if isinstance(message, bytes) else message.encode()
    cut = rng.randrange(len(data) + 1)
    whole, halves = frame(kind, data), frame(kind, data[:cut], fin=False) + frame(0, data[cut:])
    await client.open(rng, rng.choice(("/ws/claude", "/ws/claude?frames=verbatim")))
    await client.say(rng.choice((whole, halves)))
    await client.end(rng)


def prompt_with(**more: object) -> str:
    """Return a prompt with further keys."""
    return json.dumps({"prompt": "hi", "meta": "HOSTILE", **more})


@family
async def bad_json(client: Client, rng: Rng) -> None:
    """Text that is no JSON, or JSON that is no object."""
    kinds = (
        "",
        " ",
        "{",
        "}",
        "nul",
        "null",
        "1",
        '"x"',
        "[]",
        "NaN",
        "{'a':1}",
        '{"a":1,}',
        '{"a" 1}',
        '{"a":01}',
        '{"a":"\t"}',
        '{"a":"\\x"}',
        "\ufeff{}",
        GOOD + GOOD,
        GOOD[:-1],
        "//",
        '{"a":+1}',
    )
    await attack_message(client, rng, rng.choice(kinds))


@family
async def json_constants(client: Client, rng: Rng) -> None:
    """NaN and the infinities, which Python's JSON takes and the standard does not."""
    await attack_message(
        client,
        rng,
        GOOD[:-1]
        + f',"{rng.choice(("timeout", "temperature", "x"))}":{rng.choice(("NaN", "Infinity", "-Infinity"))}}}',
    )


@family
async def deep_nesting(client: Client, rng: Rng) -> None:
    """Arrays and objects in each other, as deep as the message limit allows, ended or not."""
    opening, closing = rng.choice((("[", "]"), ('{"a":', "}"), ('[{"a":', "}]")))
    depth = rng.choice((900, 1000, 3000, 8000))
    nested = opening * depth + "1" + closing * depth
    await attack_message(client, rng, rng.choice((nested, opening * depth, GOOD[:-1] + f',"json_schema":{nested}}}')))


@family
async def a_message_of_brackets(client: Client, rng: Rng) -> None:
    """64 KiB of opening brackets, or one byte more."""
    await attack_message(client, rng, "[" * (65536 + rng.choice((0, 0, 1))))


@family
async def lone_surrogates(client: Client, rng: Rng) -> None:
    """Escapes of half a character, in a value, a key or an option."""
    half = rng.choice(("\\ud800", "\\udc80", "\\udfff\\ud800", "\\ud83d x"))
    shapes = (
        '{{"prompt":"{}","meta":"T"}}',
        '{{"prompt":"hi","meta":"{}"}}',
        '{{"prompt":"hi","meta":"T","{}":1}}',
        '{{"prompt":"hi","meta":"T","system_prompt":"{}"}}',
        '{{"prompt":"hi","meta":"T","json_schema":{{"a":"{}"}}}}',
        '{{"{0}":1,"{0}":2}}',
    )
    await attack_message(client, rng, rng.choice(shapes).format(half))


@family
async def nul_characters(client: Client, rng: Rng) -> None:
    """NUL, escaped or bare, in a value, a key or the message."""
    await attack_message(
        client,
        rng,
        rng.choice(
            (
                prompt_with(prompt="a\0b"),
                prompt_with(meta="\0"),
                prompt_with(**{"\0": 1}),
                "\0",
                GOOD + "\0",
                prompt_with(append_system_prompt="\0"),
            )
        ),
    )


@family
async def duplicate_keys(client: Client, rng: Rng) -> None:
    """A key twice, on the outside or deep inside."""
    await attack_message(
        client,
        rng,
        rng.choice(
            (
                '{"prompt":"a","prompt":"b","meta":"T"}',
                '{"a":1,"\\u0061":2}',
                GOOD[:-1] + ',"json_schema":{"x":{"y":1,"y":2}}}',
                "{" + '"k":1,' * 2000 + '"k":1}',
            )
        ),
    )


@family
async def huge_numbers(client: Client, rng: Rng) -> None:
    """Numbers with more digits, or a greater exponent, than any type takes."""
    number = rng.choice(("1" + "0" * 400, "9" * 4300, "9" * 5000, "1e999", "-1e999", "0." + "9" * 5000 + "e400"))
    key = rng.choice(("max_turns", "max_budget_usd", "temperature", "timeout", "max_output_tokens", "x"))
    await attack_message(client, rng, GOOD[:-1] + f',"{key}":{number}}}')


RIGHT = {
    "prompt": str,
    "meta": str,
    "model": str,
    "partial": bool,
    "max_turns": int,
    "json_schema": dict,
    "timeout": float,
}


@family
async def wrong_types(client: Client, rng: Rng) -> None:
    """A field of another type than it takes."""
    key = rng.choice(sorted(RIGHT))
    values = [value for value in (None, True, 1.5, "7", [], {}) if type(value) is not RIGHT[key]]
    await attack_message(client, rng, prompt_with(**{key: rng.choice(values)}))


@family
async def bad_meta_and_prompt(client: Client, rng: Rng) -> None:
    """A prompt or meta that is empty, too long, or of other characters, and messages that lack one."""
    metas = ("", "a", "A\n", "É", "A" * 65, "../X", "A B", "\u0410")
    shapes = (
        prompt_with(meta=rng.choice(metas)),
        prompt_with(prompt=""),
        prompt_with(prompt="€" * 2731),
        "{}",
        '{"prompt":"x"}',
        '{"meta":"T"}',
    )
    await attack_message(client, rng, rng.choice(shapes))


@family
async def bad_options(client: Client, rng: Rng) -> None:
    """Options that are unknown, out of bounds, or words that would widen what the CLI may do."""
    option: tuple[str, object] = rng.choice((
        ("model", "--dangerously"), ("model", "a b"), ("model", "x" * 201), ("resume", "../../etc"), ("resume", "0" * 36), ("effort", "MAX"),
        ("workspace", ".."), ("workspace", "a/b"), ("timeout", 0), ("timeout", 1e9), ("max_turns", -1), ("temperature", 1.01),
        ("permission_mode", "bypassPermissions"), ("mcp_servers", {}), ("__class__", 1), ("options", {}), ("system_prompt", "x" * 32769),
    ))  # fmt: skip
    await attack_message(client, rng, prompt_with(**dict((option,))))


@family
async def binary_message(client: Client, rng: Rng) -> None:
    """A good message, or noise, as binary."""
    await attack_message(client, rng, rng.choice((GOOD.encode(), rng.randbytes(3000), b"")), kind=BINARY)


@family
async def message_over_the_limit(client: Client, rng: Rng) -> None:
    """A message over the limit, in one frame or many, of one-byte or longer characters."""
    await attack_message(
        client, rng, prompt_with(prompt=rng.choice(("x", "€")) * rng.choice((65_500, 66_000, 300_000)))
    )


@family
async def flipped_message(client: Client, rng: Rng) -> None:
    """A message, wrong to begin with, in which one to three bytes are others."""
    await attack_message(client, rng, flipped(prompt_with(prompt=1).encode(), rng, rng.randint(1, 3)))


@family
async def many_bad_messages(client: Client, rng: Rng) -> None:
    """Messages by the dozen before the first is answered."""
    await attack_frames(client, rng, frame(TEXT, rng.choice((b"{}", b"", b"[" * 2000))) * rng.randint(2, 60))


# -- sessions ---------------------------------------------------------------------------------------------------------


def session(message: str = GOOD) -> bytes:
    """Return all that a good client sends."""
    return head() + frame(TEXT, message.encode()) + frame(CLOSE, b"\x03\xe8")


@running
@family
async def second_message(client: Client, rng: Rng) -> None:
    """Messages behind the prompt, fewer than end the run."""
    await client.open(rng)
    await client.say(frame(TEXT, SILENT.encode()) + frame(TEXT, b"more") * rng.randint(1, 6))
    await client.hear(rng.uniform(0, PATIENCE))
    await client.end(rng)


@running
@family
async def eighth_message(client: Client, rng: Rng) -> None:
    """More messages behind the prompt than a run is given."""
    await client.open(rng)
    await client.say(frame(TEXT, SILENT.encode()) + frame(TEXT, b"more") * rng.choice((8, 9, 100)))
    await client.hear(0.6)
    await client.end(rng)


@running
@family
async def leave_in_mid_run(client: Client, rng: Rng) -> None:
    """A run that says something without end to a client who reads a little, then leaves."""
    await client.open(rng)
    await client.say(
        frame(TEXT, json.dumps({"prompt": directive("lines", n=200_000, size=500), "meta": "HOSTILE"}).encode())
    )
    await trio.sleep(rng.uniform(0, PATIENCE))
    await client.end(rng)


@running
@family
async def floods_in_mid_run(client: Client, rng: Rng) -> None:
    """Pings and protocol errors while a run is on."""
    await client.open(rng)
    await client.say(frame(TEXT, SILENT.encode()) + frame(PING, b"x" * 125) * rng.randint(1, 2000))
    await client.say(
        rng.choice((frame(3), frame(TEXT, b"\xff"), frame(CLOSE, b"\0"), b"\x81\x02{}", rng.randbytes(200)))
    )
    await client.end(rng)


@running
@family
async def session_cut_by_reset(client: Client, rng: Rng) -> None:
    """A good session up to a random byte, then a reset."""
    data = session()
    await client.say(data[: rng.randrange(len(data) + 1)])
    await trio.sleep(rng.choice((0, 0.002, 0.05)))
    client.reset()


@running
@family
async def session_cut_by_fin(client: Client, rng: Rng) -> None:
    """A good session up to a random byte, then a FIN."""
    data = session()
    await client.say(data[: rng.randrange(len(data) + 1)])
    client.finish()
    await client.hear()


@running
@family
async def session_with_a_flipped_byte(client: Client, rng: Rng) -> None:
    """A good session in which one byte, of the handshake or of a frame, is another."""
    await client.say_in_pieces(flipped(session(), rng), rng)
    await client.end(rng)


@running
@family
async def session_with_a_flipped_frame(client: Client, rng: Rng) -> None:
    """A good session in which one byte of the frames is another."""
    data, start = session(), len(head())
    await client.say(data[:start] + flipped(data[start:], rng))
    await client.end(rng)
