"""Rule: each combination of Origin, Host, credential, bind and door has one answer, and it is the one written here."""

from __future__ import annotations

import base64
import contextlib
import itertools
import json
import time
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
from harness import Backend, ask, connect, directive, head, listen, open_backend, until
from hypothesis import given
from hypothesis import strategies as st
from joserfc import jwt
from joserfc.jwk import OctKey
from returns import attach
from talk import open_talk
from trio_websocket import ConnectionClosed

from trio_claude.admission import Limits, Member
from trio_claude.api import OPEN_PATHS
from trio_claude.commands.settings import load
from trio_claude.config import Config
from trio_claude.entrance import RELOADED, Entrance, changed
from trio_claude.errors import ConfigError, HttpRefusal, Reason
from trio_claude.events import ConnectionOpened, Reloaded, RunEnded, Strained, Weak
from trio_claude.identity.keys import Key, digest, new_secret, read_keys, write_keys
from trio_claude.journal import Query
from trio_claude.server import open_server
from trio_claude.upgrade import Request

ORIGINS = ("none", "same", "other port", "https of it", "another site", "named", "null", "a part of it")
HOSTS = ("127.0.0.1", "localhost", "[::1]", "named", "rebound", "loopback with a tail", "none")
CREDENTIALS = (
    "none", "key", "key in a subprotocol", "viewer", "wrong key", "token", "expired token", "ticket", "ticket of another origin",
    "spent ticket", "key in the query", "two",
)  # fmt: skip
DOORS = {
    "/ws/claude": "socket", "/ws/session": "socket", "/": "open", "/page.js": "open", "/healthz": "open", "/readyz": "open",
    "/api/ticket": "known", "/nothing": "nothing", "/ws/other": "nothing",
}  # fmt: skip
SECRET = b"k" * 32


def expected(origin: str, host: str, credential: str, door: str, *, asks: bool) -> int:
    """Return the status that a request gets, by the rules as the documentation has them."""
    if host in ("rebound", "loopback with a tail", "none"):
        return 400 if host == "none" else 403
    if origin not in ("none", "same", "named"):
        return 403
    if asks and credential == "two":
        return 400
    if asks and credential in ("wrong key", "expired token", "ticket of another origin", "spent ticket"):
        return 401
    if asks and credential == "ticket" and not door.startswith("/ws/"):
        return 401
    known = not asks or credential in ("key", "key in a subprotocol", "viewer", "token", "ticket")
    if not known and DOORS[door] != "open":
        return 401
    if door == "/ws/claude" and asks and credential == "viewer":
        return 403
    return {"socket": 101, "open": 200, "known": 200, "nothing": 404}[DOORS[door]]


@attrs.frozen
class Table:
    """A server's credentials, and the requests that the table is made of."""

    port: int
    keys: dict[str, str]
    entrance: Entrance

    def origin(self, what: str, host: str) -> str | None:
        return {
            "none": None, "same": f"http://{host}", "other port": "http://127.0.0.1:1", "https of it": f"https://{host}",
            "another site": "https://evil.example", "named": "https://app.example", "null": "null",
            "a part of it": f"http://{host}.evil.example",
        }[what]  # fmt: skip

    def host(self, what: str) -> str | None:
        return {
            "127.0.0.1": f"127.0.0.1:{self.port}", "localhost": "localhost", "[::1]": f"[::1]:{self.port}",
            "named": "claude.example", "rebound": f"evil.example:{self.port}",
            "loopback with a tail": "127.0.0.1.evil.example", "none": None,
        }[what]  # fmt: skip

    async def ticket(self, origin: str | None) -> str:
        alice = self.entrance._gatekeeper._find(self.keys["alice"], trio.current_time(), time.time())
        headers = {} if origin is None else {"origin": origin}
        return await self.entrance.ticket(Request("POST", "/api/ticket", {}, headers, identity=alice))

    async def credential(self, what: str, origin: str | None) -> dict[str, str]:
        key, wrong = self.keys["alice"], new_secret()
        spent = await self.ticket(origin)
        self.entrance._tickets.spend(spent, origin, trio.current_time())
        return {
            "none": {}, "key": auth(key), "key in a subprotocol": protocol("bearer", key), "viewer": auth(self.keys["vera"]),
            "wrong key": auth(wrong), "token": auth(token(600)), "expired token": auth(token(-600)),
            "ticket": protocol("ticket", await self.ticket(origin)),
            "ticket of another origin": protocol("ticket", await self.ticket("https://elsewhere.example")),
            "spent ticket": protocol("ticket", spent), "key in the query": {},
            "two": {**auth(key), **protocol("bearer", key)},
        }[what]  # fmt: skip

    async def request(self, origin: str, host: str, credential: str, door: str) -> bytes:
        named = self.host(host)
        from_where = self.origin(origin, named or "")
        ticket = await self.ticket(from_where)
        path = f"{door}?token={self.keys['alice']}&ticket={ticket}" if "query" in credential else door
        headers: dict[str, str | None] = {
            "host": named,
            "origin": from_where,
            **await self.credential(credential, from_where),
        }
        if DOORS[door] == "socket" or door.startswith("/ws/"):
            return head(path, **headers)
        method = "POST" if door == "/api/ticket" else "GET"
        lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items() if value)]
        return "\r\n".join([*lines, "content-length: 0", "", ""]).encode()


def auth(secret: str) -> dict[str, str]:
    return {"authorization": f"Bearer {secret}"}


def protocol(kind: str, secret: str) -> dict[str, str]:
    said = base64.urlsafe_b64encode(secret.encode()).rstrip(b"=").decode()
    return {"sec-websocket-protocol": f"trio-claude.v1, {kind}.{said}"}


def token(seconds: float) -> str:
    claims = {"iss": "https://issuer.example", "aud": "trio-claude", "sub": "tom", "exp": int(time.time() + seconds)}
    return jwt.encode({"alg": "HS256", "kid": "hs"}, claims, OctKey.import_key(SECRET))


def jwt_settings(folder: Path) -> dict[str, Any]:
    said = {"kty": "oct", "k": base64.urlsafe_b64encode(SECRET).rstrip(b"=").decode(), "kid": "hs", "alg": "HS256"}
    (folder / "jwks.json").write_text(json.dumps({"keys": [said]}))
    return {
        "jwt_keys": str(folder / "jwks.json"), "jwt_issuer": ("https://issuer.example",), "jwt_audience": "trio-claude",
    }  # fmt: skip


def request(method: str, path: str, **headers: str) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", *(f"{name.replace('_', '-')}: {value}" for name, value in headers.items())]
    return "\r\n".join([*lines, "content-length: 0", "", ""]).encode()


async def exchange(port: int, data: bytes) -> bytes:
    """Send a request and read its answer, or its beginning where it is long."""
    async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
        await stream.send_all(data)
        return bytes(await stream.receive_some(65536))


@pytest.mark.parametrize("upgrade", ["h2c", "websocket, h2c", ""])
async def test_a_ticket_is_nothing_where_no_socket_is_opened(fake: Backend, upgrade: str) -> None:
    async with fake.serve_known("alice", journal="memory") as (server, keys):
        known = auth(keys["alice"])
        answer = await exchange(server.port, request("POST", "/api/ticket", host="localhost", **known))
        given = protocol("ticket", json.loads(answer.partition(b"\r\n\r\n")[2])["ticket"])
        asks = request("GET", "/api/runs", host="localhost", upgrade=upgrade, **given)
        assert told(await exchange(server.port, asks)) == 401
        assert told(await exchange(server.port, head(host="localhost", **given))) == 101


@pytest.fixture(params=["alone", pytest.param("shared", marks=pytest.mark.redis)])
def sharing(request: pytest.FixtureRequest) -> dict[str, Any]:
    """The settings of a server that is alone, and of one that shares what it counts: both do the same."""
    if request.param == "alone":
        return {}
    return {"redis": request.getfixturevalue("redis_server").url, "node_lease": 2.0}


def told(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


@pytest.mark.parametrize("asks", [False, True], ids=["nobody is asked", "everybody is asked"])
async def test_every_combination_has_its_answer(fake: Backend, tmp_path: Path, asks: bool) -> None:
    named = {
        "allow_origin": ("https://app.example",),
        "allow_host": ("claude.example",),
        "max_handshakes_per_address": 4096,
    }
    cells = list(itertools.product(ORIGINS, HOSTS, CREDENTIALS if asks else CREDENTIALS[:5], DOORS))
    wrong: list[object] = []
    settings = {**named, **jwt_settings(tmp_path)} if asks else named
    async with fake.serve_known("alice", "vera/viewer", **{**settings, **({} if asks else {"keys": ""})}) as (
        server,
        keys,
    ):
        with_keys = Config(keys=str(fake.cwd.parent / "keys.json"), **jwt_settings(tmp_path))
        table = Table(server.port, keys, server._entrance if asks else Entrance(with_keys))

        async def look(share: list[tuple[str, str, str, str]]) -> None:
            for cell in share:
                answer = await exchange(server.port, await table.request(*cell))
                if told(answer) != expected(*cell, asks=asks):
                    wrong.append((cell, expected(*cell, asks=asks), answer[:200]))
                if told(answer) == 101 and b"protocol" in await table.request(*cell):
                    assert b"bearer." not in answer
                    assert b"ticket." not in answer

        async with trio.open_nursery() as nursery:
            for first in range(8):
                nursery.start_soon(look, cells[first::8])
        assert not wrong, wrong[:5]
        await until(lambda: not server._entrance.inside)


BINDS = {
    "127.0.0.1": True, "localhost": True, "::1": True, "127.0.0.2": True, "::ffff:127.0.0.1": True, "0:0:0:0:0:0:0:1": True,
    "0.0.0.0": False, "::": False, "192.0.2.1": False, "::ffff:192.0.2.1": False, "127.0.0.1.example": False,
}  # fmt: skip


@pytest.mark.parametrize("asks", [False, True])
@pytest.mark.parametrize("host", BINDS)
async def test_an_address_that_others_reach_takes_keys(fake: Backend, tmp_path: Path, host: str, asks: bool) -> None:
    """Looked at without listening there: `Entrance` is made before anything is bound."""
    path = tmp_path / "keys.json"
    write_keys(path, {"a": Key(digest("x"))})
    config = Config(host=host, keys=str(path) if asks else "")
    if not BINDS[host] and not asks:
        with pytest.raises(ConfigError, match="make keys"):
            Entrance(config)
        with pytest.raises(ConfigError, match="make keys"):
            async with open_server(attrs.evolve(config, cli=fake.program)):
                pytest.fail("opened")
        return
    entrance = Entrance(config, OPEN_PATHS)
    for name, allowed in (("127.0.0.1", True), (f"[{host}]" if ":" in host else host, True), ("evil.example", False)):
        request = Request("GET", "/healthz", {}, {"host": name})
        if allowed:
            await entrance.check(request, "192.0.2.7")
        else:
            with pytest.raises(HttpRefusal):
                await entrance.check(request, "192.0.2.7")


# -- addresses ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("proxies", "forwarded", "seen"),
    [
        ((), "203.0.113.9", "127.0.0.1"),
        (("127.0.0.1",), None, "127.0.0.1"),
        (("127.0.0.1",), "203.0.113.9", "203.0.113.9"),
        (("127.0.0.0/8", "10.0.0.0/8"), "203.0.113.9, 10.1.1.1", "203.0.113.9"),
        (("127.0.0.1",), "6.6.6.6, 203.0.113.9", "203.0.113.9"),
        (("127.0.0.1",), "nonsense", "127.0.0.1"),
        (("127.0.0.1",), "2001:db8::1", "2001:db8::1"),
        (("127.0.0.1",), "203.0.113.9:50123", "203.0.113.9"),
        (("127.0.0.1",), "[2001:db8::1]:443", "2001:db8::1"),
        (("127.0.0.1",), "[2001:DB8::0:1]", "2001:db8::1"),
        (("127.0.0.1",), "::ffff:203.0.113.9", "203.0.113.9"),
        (("127.0.0.1", "10.0.0.0/8"), "203.0.113.9, 10.1.1.1:80", "203.0.113.9"),
        (("127.0.0.1",), "[203.0.113.9", "127.0.0.1"),
        (("10.0.0.0/8",), "203.0.113.9", "127.0.0.1"),
    ],
)
async def test_an_address_is_believed_from_trusted_proxies(
    proxies: tuple[str, ...], forwarded: str | None, seen: str
) -> None:
    entrance = Entrance(Config(trusted_proxies=proxies))
    headers = {"host": "localhost", **({"x-forwarded-for": forwarded} if forwarded else {})}
    seen_as = await entrance.check(Request("GET", "/", {}, headers), "127.0.0.1")
    assert seen_as.address == seen


@given(st.text(max_size=80))
def test_any_forwarded_header_gives_an_address(forwarded: str) -> None:
    entrance = Entrance(Config(trusted_proxies=("127.0.0.1",)))
    request = Request("GET", "/", {}, {"host": "localhost", "x-forwarded-for": forwarded})
    address = entrance._forwarded(request, "127.0.0.1")
    assert address
    assert "\n" not in address


async def test_connections_are_counted_by_identity(fake: Backend) -> None:
    async with fake.serve_known("alice", "bob", connections_per_identity=2) as (server, keys):
        async with connect(server, key=keys["alice"]), connect(server, key=keys["alice"]):
            third = await exchange(server.port, head(host="localhost", **auth(keys["alice"])))
            assert told(third) == 429
            assert b"retry-after: 1" in third.lower()
            async with connect(server, key=keys["bob"]):
                pass
        await until(lambda: not server._entrance.inside)
        async with connect(server, key=keys["alice"]):
            pass
    opened = [event.identity for event in fake.events if isinstance(event, ConnectionOpened)]
    assert opened == ["key:alice", "key:alice", "key:bob", "key:alice"]


async def test_connections_are_counted_by_address_before_anybody_is_known(fake: Backend) -> None:
    get = request("GET", "/healthz", host="localhost")
    async with (
        fake.serve_known("alice", connections_per_address=3) as (server, keys),
        contextlib.AsyncExitStack() as stack,
    ):
        for _ in range(3):  # they stay, and have said nothing but this
            stream = await stack.enter_async_context(await trio.open_tcp_stream("127.0.0.1", server.port))
            await stream.send_all(get)
            assert told(bytes(await stream.receive_some(4096))) == 200
        assert told(await exchange(server.port, get)) == 429
        assert told(await exchange(server.port, head(host="localhost", **auth(keys["alice"])))) == 429
        await stack.aclose()
        await until(lambda: not len(server._entrance._addresses))
        assert told(await exchange(server.port, head(host="localhost", **auth(keys["alice"])))) == 101


async def test_connections_by_way_of_a_proxy_are_counted_by_whom_it_names(fake: Backend) -> None:
    known = {"trusted_proxies": ("127.0.0.1",), "connections_per_address": 2}
    async with fake.serve_known("alice", **known) as (server, keys), contextlib.AsyncExitStack() as stack:

        async def come(address: str) -> int:
            stream = await stack.enter_async_context(await trio.open_tcp_stream("127.0.0.1", server.port))
            await stream.send_all(head(host="localhost", x_forwarded_for=address, **auth(keys["alice"])))
            return told(bytes(await stream.receive_some(4096)))

        assert [await come(f"203.0.113.{number}") for number in (1, 1, 1, 2, 2, 2)] == [101, 101, 429, 101, 101, 429]
        assert [await come(f"203.0.113.3:{port}") for port in (1, 2, 3)] == [101, 101, 429]
        assert [await come(f"2001:db8::{number}") for number in (1, 2, 3)] == [101, 101, 429]
        assert await come("2001:db8:0:1::1") == 101
        await stack.aclose()
        await until(lambda: not len(server._entrance._addresses))


# -- reload ------------------------------------------------------------------------------------------------------------


async def test_a_reload_changes_limits_and_origins_and_runs_go_on(fake: Backend) -> None:
    async with fake.serve_known("alice", max_runs=1) as (server, keys), connect(server, key=keys["alice"]) as running:
        await running.send_message(json.dumps({"prompt": directive("slow", n=20, ms=50), "meta": "T"}))
        await until(lambda: server.runs.statistics().live)
        config = server._entrance.config
        server.reload(lambda: attrs.evolve(config, max_runs=2, allow_origin=("https://new.example",)))
        assert server.runs.statistics().slots == 2
        assert (await ask(server, "hello", key=keys["alice"])).code == 1000
        from_new = head(host="localhost", origin="https://new.example", **auth(keys["alice"]))
        assert told(await exchange(server.port, from_new)) == 101
        assert (await listen(running)).code == 1000
    assert [event for event in fake.events if isinstance(event, Reloaded)] == [Reloaded()]


async def test_a_bad_reload_changes_nothing(fake: Backend) -> None:
    async with fake.serve_known("alice") as (server, keys):
        config = server._entrance.config
        Path(config.keys).write_text("{")
        server.reload(lambda: attrs.evolve(config, max_runs=7))
        server.reload(lambda: attrs.evolve(config, port=1, timeout=7.0))
        slots = server.runs.statistics().slots
        assert (await ask(server, "hello", key=keys["alice"])).code == 1000
    errors = [event.error for event in fake.events if isinstance(event, Reloaded)]
    assert "no file of keys" in errors[0]
    assert errors[1] == "port, timeout: takes a restart"
    assert slots != 7


async def test_a_reload_that_names_no_file_takes_no_key_away(fake: Backend) -> None:
    async with fake.serve_known("alice") as (server, keys):
        server.reload(lambda: attrs.evolve(server._entrance.config, keys="/nonexistent/keys.json"))
        assert (await ask(server, "hello", key=keys["alice"])).code == 1000
    assert [event.error for event in fake.events if isinstance(event, Reloaded)] == [
        "keys: /nonexistent/keys.json is not there"
    ]


def test_what_a_reload_changes_are_settings() -> None:
    names = {field.name for field in attrs.fields(Config)}
    assert set(RELOADED) <= names
    assert changed(Config(), Config(prompts_per_minute=3.0)).prompts_per_minute == 3


# -- while a client is there -------------------------------------------------------------------------------------------


async def test_a_key_that_is_taken_back_starts_nothing_new(fake: Backend) -> None:
    async with fake.serve_known("alice", "bob") as (server, keys), connect(server, key=keys["alice"]) as socket:
        path = Path(server._entrance.config.keys)
        write_keys(path, {name: key for name, key in read_keys(path).items() if name != "alice"})
        await trio.sleep(1.1)
        await socket.send_message(json.dumps({"prompt": "hello", "meta": "T"}))
        said = await listen(socket)
        assert said.code == 1008
        assert "not valid any more" in str(said.errors)
        assert told(await exchange(server.port, head(host="localhost", **auth(keys["alice"])))) == 401
        assert (await ask(server, "hello", key=keys["bob"])).code == 1000


async def test_a_file_of_keys_that_can_not_be_read_is_told_of_though_nobody_comes(fake: Backend) -> None:
    async with fake.serve_known("alice") as (server, _):
        path = Path(server.config.keys)
        whole = path.read_bytes()

        def told() -> list[bool]:
            return [event.over for event in fake.events if isinstance(event, Strained)]

        path.write_text("{")
        await until(lambda: told() == [False])
        assert f"keys: {path} is no file of keys; the keys that were known stay good" in [
            event.what for event in fake.events if isinstance(event, Weak)
        ]
        path.write_bytes(whole)
        await until(lambda: told() == [False, True])


async def test_who_sees_all_no_more_watches_nobody_elses_run(fake: Backend) -> None:
    async with fake.serve_known("alice", "eve/viewer", journal="memory") as (server, keys):
        path = Path(server._entrance.config.keys)
        async with open_talk(server, keys["alice"]) as owner, open_talk(server, keys["eve"]) as late:
            started = await owner.start()
            async with open_talk(server, keys["eve"]) as viewer:
                assert (await attach(viewer, started["run"]))["role"] == "viewer"
                known = read_keys(path)
                write_keys(path, {**known, "eve": attrs.evolve(known["eve"], role="user")})
                await until(lambda: viewer.code == 1008)
                assert (await viewer.event("refused"))["code"] == "not-allowed"
            await late.say({"type": "gateway", "op": "attach", "run": started["run"], "after": 0})
            assert (await late.event("refused"))["code"] == "not-open"
            await owner.stop("kill")
            await owner.event("ended")
        async with open_talk(server, keys["eve"]) as later:
            await later.say({"type": "gateway", "op": "attach", "run": started["run"], "after": 0})
            assert (await later.event("refused"))["code"] == "not-open"


async def test_prompts_over_the_rate_are_told_when_to_come_back(fake: Backend, sharing: dict[str, Any]) -> None:
    async with fake.serve_known("alice", "bob", prompts_per_minute=1.0, **sharing) as (server, keys):
        assert (await ask(server, "hello", key=keys["alice"])).code == 1000
        said = await ask(server, "hello", key=keys["alice"])
        assert said.code == 1013
        assert 50 < float(str(said.errors[0]["retry_after"])) <= 60
        assert (await ask(server, "hello", key=keys["bob"])).code == 1000


async def test_who_finds_no_place_has_asked_nothing(fake: Backend, sharing: dict[str, Any]) -> None:
    limits = {"max_runs": 1, "max_waiting": 0, "prompts_per_minute": 1.0, "total_prompts_per_minute": 2.0, **sharing}
    async with fake.serve_known("alice", "bob", **limits) as (server, keys):
        async with open_talk(server, keys["bob"]) as busy:
            await busy.start()
            for _ in range(3):
                refused = await ask(server, "hello", key=keys["alice"])
                assert (refused.code, "wait already" in str(refused.errors)) == (1013, True)
            async with open_talk(server, keys["alice"]) as late:
                await late.say({"type": "gateway", "op": "start", "meta": "T"})
                assert (await late.event("refused"))["code"] == "queue-full"
            await busy.stop("end")
            await busy.event("ended")
        await until(lambda: not server.runs.statistics().live)
        assert (await ask(server, "hello", key=keys["alice"])).code == 1000
        assert "prompts a minute" in str((await ask(server, "hello", key=keys["alice"])).errors)


async def test_who_waits_hears_of_a_limit_that_is_raised(fake: Backend, sharing: dict[str, Any]) -> None:
    async with fake.serve_known("alice", runs_per_identity=1, **sharing) as (server, keys):
        path = Path(server.config.keys)
        async with open_talk(server, keys["alice"]) as first, open_talk(server, keys["alice"]) as second:
            await first.start()
            await second.say({"type": "gateway", "op": "start", "meta": "T"})
            await second.event("queued")
            known = read_keys(path)
            write_keys(path, {"alice": attrs.evolve(known["alice"], limits={"runs_per_identity": 2.0})})
            await second.event("started")


async def test_a_run_that_passes_the_day_ends_over_budget(fake: Backend, sharing: dict[str, Any]) -> None:
    async with fake.serve_known("alice", "bob", dollars_per_day=0.0001, **sharing) as (server, keys):
        said = await ask(server, "hello", key=keys["alice"])
        assert said.of_type("result")
        assert said.code == 1011
        assert said.reason.startswith("over-budget")
        assert "dollars a day is spent" in str(said.errors)
        again = await ask(server, "hello", key=keys["alice"])
        assert again.code == 1013
        assert 0 < float(str(again.errors[0]["retry_after"])) <= 86400
    (ended,) = fake.ended
    assert ended.outcome.reason is Reason.OVER_BUDGET
    assert ended.identity == "key:alice"
    assert ended.outcome.receipt.survivors == 0


async def test_who_waited_while_others_spent_the_day_is_not_started(fake: Backend, sharing: dict[str, Any]) -> None:
    prompt = directive("slow", n=20, ms=20)
    async with (
        fake.serve_known("alice", dollars_per_day=0.0001, max_runs=1, **sharing) as (server, keys),
        open_talk(server, keys["alice"]) as talk,
        trio.open_nursery() as nursery,
    ):

        async def spend() -> None:
            assert (await ask(server, prompt, key=keys["alice"])).reason.startswith("over-budget")

        async def wait() -> None:
            said = await ask(server, "hello", key=keys["alice"])
            assert (said.code, "dollars a day is spent" in said.reason) == (1013, True)

        nursery.start_soon(spend)
        await until(lambda: server.runs.statistics().live == 1)
        nursery.start_soon(wait)
        await talk.say({"type": "gateway", "op": "start", "meta": "T"})
        await until(lambda: server.runs.statistics().waiting == 2)
        assert (await talk.event("refused"))["code"] == "over-budget"
        await until(lambda: talk.code == 1013)
    assert len(fake.ended) == 1


async def test_who_leaves_before_the_result_is_charged_all_the_same(fake: Backend, sharing: dict[str, Any]) -> None:
    async with fake.serve_known("alice", tokens_per_day=5, **sharing) as (server, keys):
        async with connect(server, key=keys["alice"]) as socket:
            prompt = directive("slow", n=200, ms=20)
            await socket.send_message(json.dumps({"prompt": prompt, "meta": "T", "partial": True}))
            for _ in range(10):
                while "stream_event" not in await socket.get_message():
                    pass
        await until(lambda: len(fake.ended) == 1)
        again = await ask(server, "hello", key=keys["alice"])
        assert again.code == 1013
        assert "tokens a day is spent" in str(again.errors)


@pytest.mark.parametrize("name", ["fake", pytest.param("real", marks=pytest.mark.real_cli)])
async def test_a_client_that_bounds_a_run_is_charged_for_all_that_it_cost(name: str, folder: Path) -> None:
    """A CLI looks at its bound behind a response, which may cost many times that."""
    async with (
        open_backend(name, folder) as cli,
        cli.serve_known("alice", dollars_per_day=0.05) as (server, keys),
    ):
        said = await ask(server, directive("slow", n=4000, ms=0), key=keys["alice"], max_budget_usd=0.0001)
        (result,) = said.of_type("result")
        assert cli.ended[-1].dollars == result["total_cost_usd"] > 0.05
        assert (await ask(server, "hello", key=keys["alice"])).code == 1013


@pytest.mark.real_cli
async def test_a_session_that_is_resumed_is_charged_for_its_new_turn_only(real: Backend) -> None:
    """The CLI itself counts a session from its first turn, whichever run that was in."""
    async with real.serve_known("alice", journal="memory", dollars_per_day=100.0) as (server, keys):
        charged: list[float] = []
        session = None
        for _ in range(3):
            said = await ask(server, "hello", key=keys["alice"], **({"resume": session} if session else {}))
            assert said.code == 1000
            session = str(said.of_type("result")[0]["session_id"])
            assert server.runs.journal
            await server.runs.journal.settle()
            runs = (await server.runs.journal.find(Query(identity="key:alice"))).runs
            charged.append(runs[0].dollars)
        assert charged[1] == pytest.approx(charged[0], rel=0.5)
        assert charged[2] == pytest.approx(charged[0], rel=0.5)


async def test_limits_are_exact_under_a_thousand_asks(fake: Backend) -> None:
    """Never over; what is refused is told when to come back."""
    codes: list[int] = []
    highest = 0
    async with fake.serve_known("alice", "bob", max_runs=4, prompts_per_minute=20.0, max_waiting=2000) as (
        server,
        keys,
    ):

        async def one(number: int) -> None:
            nonlocal highest
            said = await ask(server, "hello", key=keys["alice" if number % 2 else "bob"])
            codes.append(said.code)
            highest = max(highest, server.runs.statistics().live)

        async with trio.open_nursery() as nursery:
            for number in range(1000):
                nursery.start_soon(one, number)
                if number % 50 == 49:
                    await trio.sleep(0.01)
    good = codes.count(1000)
    assert len(codes) == 1000
    assert set(codes) == {1000, 1013}
    ended = [event for event in fake.events if isinstance(event, RunEnded)]
    assert len(ended) == good
    assert highest <= 4
    seconds = 120  # in which the buckets of two identities get back 40 at the most
    assert 40 <= good <= 40 + 2 * 20 * seconds / 60


async def test_one_prompt_waits_for_one_run_of_a_crowd(fake: Backend) -> None:
    async with fake.serve_known("many", "one", max_runs=1) as (server, keys), trio.open_nursery() as nursery:

        async def crowd(prompt: str) -> None:
            await ask(server, prompt, key=keys["many"])

        async def let_in() -> None:
            await until(lambda: server.runs.statistics().waiting == 201)
            (first,) = server.runs._live
            server.runs.stop(first, None)

        nursery.start_soon(crowd, directive("silent"))
        await until(lambda: server.runs.statistics().live == 1)
        for _ in range(200):
            nursery.start_soon(crowd, "hello")
        await until(lambda: server.runs.statistics().waiting == 200)
        nursery.start_soon(let_in)
        said = await ask(server, "hello", key=keys["one"])
        assert said.code == 1000
        assert said.objects[1]["position"] == 1
        assert [event.identity for event in fake.ended[:2]] == ["key:many", "key:one"]
        nursery.cancel_scope.cancel()


# -- pages of named origins --------------------------------------------------------------------------------------------


async def test_a_page_of_a_named_origin_may_read_answers(fake: Backend) -> None:
    app = "https://app.example"
    async with fake.serve_known("alice", allow_origin=(app,)) as (server, keys):
        asks = {"host": "localhost", "origin": app, "access_control_request_method": "POST"}
        preflight = await exchange(server.port, request("OPTIONS", "/api/ticket", **asks))
        assert told(preflight) == 204
        assert f"Access-Control-Allow-Origin: {app}".encode() in preflight
        assert b"Access-Control-Allow-Headers: Authorization" in preflight
        for known, status in ((auth(keys["alice"]), 200), ({}, 401)):
            answer = await exchange(server.port, request("POST", "/api/ticket", host="localhost", origin=app, **known))
            assert told(answer) == status
            assert f"Access-Control-Allow-Origin: {app}".encode() in answer
            assert b"Access-Control-Expose-Headers: X-Next-Part, Retry-After" in answer
        evil = await exchange(
            server.port, request("OPTIONS", "/api/ticket", **{**asks, "origin": "https://evil.example"})
        )
        assert told(evil) == 403
        assert b"Access-Control" not in evil
        same = await exchange(server.port, request("POST", "/api/ticket", host="localhost", **auth(keys["alice"])))
        assert b"Access-Control" not in same
        assert told(await exchange(server.port, request("OPTIONS", "/api/ticket", host="localhost"))) == 401


async def test_a_ticket_is_bought_and_spent_over_the_wire(fake: Backend, sharing: dict[str, Any]) -> None:
    async with fake.serve_known("alice", **sharing) as (server, keys):
        answer = await exchange(server.port, request("POST", "/api/ticket", host="localhost", **auth(keys["alice"])))
        said = json.loads(answer.partition(b"\r\n\r\n")[2])
        assert said["seconds"] == 30
        assert b"no-store" in answer
        shake = head(host="localhost", **protocol("ticket", said["ticket"]))
        assert told(await exchange(server.port, shake)) == 101
        assert told(await exchange(server.port, shake)) == 401
        assert (
            told(await exchange(server.port, request("GET", "/api/ticket", host="localhost", **auth(keys["alice"]))))
            == 405
        )


# -- sessions ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["fake", pytest.param("real", marks=pytest.mark.real_cli)])
async def test_a_session_that_passes_the_day_ends_over_budget(name: str, folder: Path) -> None:
    async with (
        open_backend(name, folder) as cli,
        cli.serve_known("alice", "bob", dollars_per_day=0.0003) as (server, keys),
    ):
        async with open_talk(server, keys["alice"]) as talk:
            await talk.start()
            turns = 0
            while talk.code is None and turns < 8:
                turns += 1
                with contextlib.suppress(ConnectionClosed, AssertionError):  # it closes instead
                    await talk.user("hello")
                    await talk.result()
                await trio.sleep(0.1)
            ended = next(frame for frame in talk.frames if frame.get("event") == "ended")
            assert ended["reason"] == "over-budget"
            assert ended["receipt"]["survivors"] == 0
            assert "dollars a day is spent" in ended["error"]
            assert turns > 1
        async with open_talk(server, keys["alice"]) as talk:
            await talk.say({"type": "gateway", "op": "start", "meta": "T"})
            refused = await talk.event("refused")
            assert refused["code"] == "over-budget"
            assert 0 < refused["retry_after"] <= 86400
            await until(lambda: talk.code == 1013)
        assert (await ask(server, "hello", key=keys["bob"])).code == 1000


async def test_a_run_that_waited_may_spend_what_is_left_then(fake: Backend) -> None:
    async with fake.serve_known("alice", max_runs=1, dollars_per_day=1.0) as (server, keys):
        member = Member("key:alice", Limits(dollars_per_day=1.0))
        async with open_talk(server, keys["alice"]) as first, open_talk(server, keys["alice"]) as last:
            await first.start()
            await last.say({"type": "gateway", "op": "start", "meta": "T"})
            await last.event("queued")
            server.runs.accounts.spend(member, 0, 0.75)
            await first.stop("kill")
            await last.event("started")
            (run,) = server.runs._live.values()
            assert run.options.max_budget_usd == 0.25
            await last.stop("kill")
            await last.event("ended")


async def test_the_first_turn_of_a_session_is_refused_where_the_day_is_spent_by_then(fake: Backend) -> None:
    async with fake.serve_known("alice", dollars_per_day=0.0001) as (server, keys):
        async with open_talk(server, keys["alice"]) as talk:
            await talk.start()
            assert (await ask(server, "hello", key=keys["alice"])).code == 1011
            await talk.user("hello")
            assert (await talk.event("refused"))["code"] == "over-budget"
            assert talk.code is None
            await talk.stop("kill")
            await talk.event("ended")


async def test_turns_over_the_rate_are_refused_and_the_session_goes_on(fake: Backend, sharing: dict[str, Any]) -> None:
    async with fake.serve_known("alice", prompts_per_minute=2.0, **sharing) as (server, keys):
        async with open_talk(server, keys["alice"]) as talk:
            await talk.start()
            for _ in range(2):
                await talk.user("hello")
                await talk.result()
            await talk.user("hello")
            refused = await talk.event("refused")
            assert refused["code"] == "rate"
            assert 0 < refused["retry_after"] <= 30
            assert talk.code is None
            await talk.stop("end")
            assert (await talk.event("ended"))["reason"] == "exit"


async def test_a_turn_takes_a_credential_that_is_still_good(
    fake: Backend, tmp_path: Path, sharing: dict[str, Any]
) -> None:
    """A token that has expired ends nothing, and begins nothing."""
    async with fake.serve_known("alice", jwt_leeway=0.0, **jwt_settings(tmp_path), **sharing) as (server, _):
        async with open_talk(server, token(2)) as talk:
            await talk.start()
            await talk.user("hello")
            await talk.result()
            await trio.sleep(2.1)
            await talk.user("hello")
            assert (await talk.event("refused"))["code"] == "credentials"
            assert talk.code is None
            await talk.stop("end")
            assert (await talk.event("ended"))["reason"] == "exit"


async def test_a_session_that_waits_is_told_its_place_as_it_changes(fake: Backend) -> None:
    async with fake.serve_known("alice", max_runs=1) as (server, keys), contextlib.AsyncExitStack() as stack:
        talks = [await stack.enter_async_context(open_talk(server, keys["alice"])) for _ in range(3)]
        for talk in talks:
            await talk.say({"type": "gateway", "op": "start", "meta": "T"})
            await trio.sleep(0.05)
        await talks[0].event("started")
        assert [(await talk.event("queued"))["position"] for talk in talks[1:]] == [1, 2]
        await talks[1].stop("kill")
        assert (await talks[2].event("queued"))["position"] == 1
        await talks[0].stop("kill")
        await talks[2].event("started")
        await talks[2].stop("kill")
        await until(lambda: talks[2].code is not None)


async def test_what_was_spent_outlives_the_server(fake: Backend, sharing: dict[str, Any]) -> None:
    kept = {**(sharing or {"journal": f"sqlite:{fake.cwd.parent}/j.db"}), "dollars_per_day": 0.0001}
    async with fake.serve_known("alice", **kept) as (server, keys):
        assert (await ask(server, "hello", key=keys["alice"])).reason.startswith("over-budget")
    async with fake.serve_known("alice", "bob", **kept) as (server, keys):
        again = await ask(server, "hello", key=keys["alice"])
        assert again.code == 1013
        assert "dollars a day is spent" in str(again.errors)
        assert (await ask(server, "hello", key=keys["bob"])).of_type("result")


async def test_identities_that_no_sandbox_parts_are_told_of(fake: Backend) -> None:
    async with fake.serve_known("alice", containment="supervisor"), fake.serve():
        (told,) = [event for event in fake.events if isinstance(event, Weak)]
    assert "containment sandbox" in told.what


async def test_a_reload_that_asks_for_keys_takes_a_restart(fake: Backend, tmp_path: Path) -> None:
    """All that run share one home; what is to part them is made at the start."""
    write_keys(tmp_path / "keys.json", {"alice": Key(digest("x"))})
    async with fake.serve() as server:
        server.reload(lambda: attrs.evolve(server._entrance.config, keys=str(tmp_path / "keys.json")))
        assert not server._entrance.asks
    assert [event.error for event in fake.events if isinstance(event, Reloaded)] == [
        "isolation: from off to identity takes a restart"
    ]


async def test_a_file_that_is_no_text_changes_nothing(fake: Backend, tmp_path: Path) -> None:
    path = tmp_path / "own.toml"
    path.write_bytes(b"\xff\xfe")
    async with fake.serve() as server:
        server.reload(lambda: load({}, path))
        assert (await ask(server, "hello")).code == 1000
    (told,) = [event for event in fake.events if isinstance(event, Reloaded)]
    assert str(path) in told.error
    for text in ("x = " + "[" * 10_000, 'host = "\\ud800"'):
        path.write_text(text)
        with pytest.raises(ConfigError):
            load({}, path)
