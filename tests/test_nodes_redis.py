"""Rule: one connection carries all, is found to be gone in time, comes back by itself, and what will not do is refused."""

from __future__ import annotations

import datetime
import ipaddress
import logging
import math
import os
import socket as sockets
import ssl
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from unittest.mock import ANY

import pytest
import trio
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from cutter import Cutter, open_cutter
from harness import until
from redis_server import RedisServer, open_redis_server

from trio_claude.config import Config
from trio_claude.errors import ConfigError
from trio_claude.nodes.redis import Redis, RedisBroken, RedisFault, RedisGone, check, open_redis
from trio_claude.nodes.scripts import Script, load

pytestmark = pytest.mark.redis


def config(server: RedisServer, **more: object) -> Config:
    return Config(**{"redis": server.url, "node_lease": 2.0, **more})


async def test_what_is_asked_at_once_is_answered_each_its_own(redis_server: RedisServer) -> None:
    async with open_redis(config(redis_server)) as redis:
        got: dict[int, bytes] = {}

        async def ask(number: int) -> None:
            got[number] = await redis.ask("ECHO", number)

        async with trio.open_nursery() as nursery:
            for number in range(500):
                nursery.start_soon(ask, number)
        assert got == {number: str(number).encode() for number in range(500)}
        assert len(clients(redis_server)) == 2


def clients(server: RedisServer) -> list[bytes]:
    """Return the connections that Redis has, that of the question among them."""
    return server.call("CLIENT", "LIST").splitlines()


async def test_cancelled_questions_leave_nothing_behind(redis_server: RedisServer) -> None:
    async with open_redis(config(redis_server)) as redis:
        for number in range(300):
            with trio.move_on_after(0):
                await redis.ask("ECHO", number)
            with trio.move_on_after(0.0001):
                await redis.ask("ECHO", number)
        assert await redis.ask("ECHO", "still") == b"still"
        assert len(clients(redis_server)) == 2


async def test_a_script_that_redis_has_forgotten_is_told_again(redis_server: RedisServer) -> None:
    text = load("now").text + "return now()"
    script = Script("clock", text, redis_server.call("SCRIPT", "LOAD", text).decode())
    async with open_redis(config(redis_server)) as redis:
        for _ in range(3):
            assert await redis.run(script, ()) > 1_600_000_000_000
            await redis.ask("SCRIPT", "FLUSH")


async def test_what_redis_refuses_is_told_as_it_says_it(redis_server: RedisServer) -> None:
    async with open_redis(config(redis_server)) as redis:
        await redis.ask("SET", "text", "x")
        with pytest.raises(RedisFault, match="wrong kind"):
            await redis.ask("XLEN", "text")
        with pytest.raises(RedisFault, match="unknown command"):
            await redis.ask("NOPE")
        assert redis.connected


async def test_after_a_crash_it_comes_back_and_is_another_incarnation(redis_server: RedisServer) -> None:
    async with open_redis(config(redis_server)) as redis:
        told: list[bool] = []
        redis.on_change(told.append)
        before, since = redis.incarnation, redis.since
        redis_server.kill()
        with trio.fail_after(1):
            await redis.wait(connected=False)
        with pytest.raises(RedisGone, match="does not answer"):
            await redis.ask("PING")
        redis_server.start()
        with trio.fail_after(3):
            await redis.wait()
        assert await redis.ask("PING") == b"PONG"
        assert redis.incarnation != before
        assert redis.since > since
        assert told == [False, True]


async def test_one_that_hangs_is_gone_before_a_lease_is_over(redis_server: RedisServer) -> None:
    async with open_redis(config(redis_server)) as redis:
        before = redis.incarnation
        redis_server.stop()
        began = trio.current_time()
        with pytest.raises(RedisGone), trio.fail_after(2):
            await redis.ask("PING")
        assert 0.4 < trio.current_time() - began < 1.5
        assert not redis.connected
        await trio.sleep(1.5)  # it takes connections, which the system makes for it, and greets nobody
        assert not redis.connected
        redis_server.go_on()
        with trio.fail_after(5):
            await redis.wait()
        assert redis.incarnation == before


async def test_an_answer_that_takes_long_is_waited_for_while_others_come(redis_server: RedisServer) -> None:
    async with open_redis(config(redis_server)) as redis:
        await redis.ask("SET", "big", b"x" * 32 * 1024 * 1024)
        assert len(await redis.ask("GET", "big")) == 32 * 1024 * 1024


async def test_a_process_that_stood_still_does_not_take_redis_for_gone(redis_server: RedisServer) -> None:
    async with open_redis(config(redis_server)) as redis:
        told: list[bool] = []
        redis.on_change(told.append)
        async with trio.open_nursery() as nursery:
            for number in range(5):
                nursery.start_soon(redis.ask, "ECHO", number)
            await trio.lowlevel.checkpoint()
            for _ in range(4):
                time.sleep(0.7)  # noqa: ASYNC251 - the whole loop is to stand still
                await trio.lowlevel.checkpoint()
        assert await redis.ask("PING") == b"PONG"
        assert told == []


async def test_what_cannot_be_reached_is_told_at_the_start(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG), pytest.raises(ConfigError, match=r"nothing\.sock: No such file"):
        async with open_redis(Config(redis=f"unix://{folder}/nothing.sock")):
            pytest.fail("opened")
    assert not [record for record in caplog.records if record.name == "coredis"]


async def test_one_that_takes_no_more_clients_is_told_so(redis_server: RedisServer) -> None:
    port = redis_server.listen()
    async with open_redis(config(redis_server)) as redis:
        await redis.ask("CONFIG", "SET", "maxclients", 1)
        try:
            for url in (redis_server.url, f"redis://127.0.0.1:{port}"):
                with pytest.raises(ConfigError, match=r": max number of clients reached$"):
                    async with open_redis(config(redis_server, redis=url)):
                        pytest.fail("opened")
            with pytest.raises(RedisFault, match=r"Redis refuses: max number of clients reached$"):
                async with redis.open_wire(1):
                    pytest.fail("opened")
        finally:
            await redis.ask("CONFIG", "SET", "maxclients", 10000)


async def test_a_password_comes_out_of_its_file(folder: Path) -> None:
    file = folder / "password"
    file.write_text("s3cret\n")
    file.chmod(0o600)
    with open_redis_server("--requirepass", "s3cret") as server:
        async with open_redis(config(server, redis_password_file=str(file))) as redis:
            assert await redis.ask("PING") == b"PONG"
            assert "s3cret" not in repr(redis)
        with pytest.raises(ConfigError, match="must be called with the client already authenticated"):
            async with open_redis(config(server)):
                pytest.fail("opened")
        file.write_text("wrong")
        with pytest.raises(ConfigError, match="invalid"):
            async with open_redis(config(server, redis_password_file=str(file))):
                pytest.fail("opened")


async def test_a_password_that_was_changed_is_read_for_the_next_connection(folder: Path) -> None:
    file = folder / "password"
    file.write_text("old")
    file.chmod(0o600)
    with open_redis_server("--requirepass", "old") as server:
        async with open_redis(config(server, redis_password_file=str(file))) as redis:
            server.call("-a", "old", "CONFIG", "SET", "requirepass", "new")
            assert await redis.ask("PING") == b"PONG"
            server.call("-a", "new", "CLIENT", "KILL", "TYPE", "normal")
            await until(lambda: "invalid username-password pair" in redis.fault)
            file.write_text("new")
            with trio.fail_after(5):
                await redis.wait()
            async with redis.open_wire(2.0) as wire:
                assert await wire.ask("PING") == b"PONG"


async def test_over_tls_it_must_be_who_it_says_it_is(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    certificate, key = write_certificate(folder)
    with open_redis_server("--tls-cert-file", certificate, "--tls-key-file", key, "--tls-auth-clients", "no") as server:
        port = server.listen("tls-port")
        with pytest.raises(ConfigError, match="self-signed certificate"):
            async with open_redis(Config(redis=f"rediss://127.0.0.1:{port}")):
                pytest.fail("opened")
        monkeypatch.setenv("SSL_CERT_FILE", certificate)
        async with open_redis(Config(redis=f"rediss://127.0.0.1:{port}/3")) as redis:
            assert await redis.ask("PING") == b"PONG"
            told: list[bool] = []
            redis.on_change(told.append)
            monkeypatch.delenv("SSL_CERT_FILE")
            server.call("CLIENT", "KILL", "TYPE", "normal")
            await until(lambda: told == [False, False])
            assert "self-signed certificate" in redis.fault
        monkeypatch.setenv("SSL_CERT_FILE", certificate)
        with pytest.raises(ConfigError, match="Hostname mismatch"):
            async with open_redis(Config(redis=f"rediss://localhost:{port}")):
                pytest.fail("opened")


async def test_that_a_redis_wants_certificates_of_its_clients_is_told(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says so only once TLS is agreed on, and resets the connection, which may come first."""
    certificate, key = write_certificate(folder)
    files = "--tls-cert-file", certificate, "--tls-key-file", key, "--tls-ca-cert-file", certificate
    monkeypatch.setenv("SSL_CERT_FILE", certificate)
    with open_redis_server(*files) as server:
        with pytest.raises(ConfigError, match="tls-auth-clients"):
            async with open_redis(Config(redis=f"rediss://127.0.0.1:{server.listen('tls-port')}")):
                pytest.fail("opened")


async def test_the_loop_reads_no_authorities(monkeypatch: pytest.MonkeyPatch) -> None:
    """There are many, and a Redis that is gone is looked for each second."""
    readers: list[threading.Thread] = []

    def read() -> ssl.SSLContext:
        readers.append(threading.current_thread())
        return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)

    monkeypatch.setattr(ssl, "create_default_context", read)
    with pytest.raises(ConfigError, match="refused"):
        async with open_redis(Config(redis="rediss://127.0.0.1:1")):
            pytest.fail("opened")
    assert readers
    assert threading.main_thread() not in readers


@pytest.mark.parametrize(
    ("address", "why"),
    [("rediss://127.0.0.1:1", "refused"), ("redis://localhost:1", "can't start new thread")],
)
async def test_without_a_thread_redis_is_looked_for_all_the_same(
    monkeypatch: pytest.MonkeyPatch, address: str, why: str
) -> None:
    """A run may have used up the processes that there may be; what looks for Redis must not end by that."""

    async def none(*_: object, **__: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(trio.to_thread, "run_sync", none)
    with pytest.raises(ConfigError, match=why):
        async with open_redis(Config(redis=address)):
            pytest.fail("opened")


def write_certificate(folder: Path) -> tuple[str, str]:
    """Write a certificate for 127.0.0.1 that signs itself, and its key; return both files."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "redis")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    (folder / "redis.crt").write_bytes(made.public_bytes(pem))
    (folder / "redis.key").write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return str(folder / "redis.crt"), str(folder / "redis.key")


async def test_what_redis_refuses_is_told_without_an_address(redis_server: RedisServer) -> None:
    said = "MASTERDOWN at 127.0.0.1:7001 or [::1]:70, r.example:6379; 10.0.0.1 at 12:30"
    async with open_redis(config(redis_server)) as redis:
        with pytest.raises(RedisFault) as told:
            await redis.ask("EVAL", "return redis.error_reply(ARGV[1])", 0, said)
        assert str(told.value) == "Redis refuses: MASTERDOWN at … or … … … at …"
        assert said in told.value.detail
        with pytest.raises(RedisBroken) as broken:
            await redis.ask("EVAL", "return nothing.there", 0)
        assert "user_script:1:" in str(broken.value)
        assert "on @user_script" not in str(broken.value)
        redis_server.call("CONFIG", "SET", "maxmemory", "1")
        try:
            with pytest.raises(RedisFault, match=r"^Redis refuses: OOM command not allowed [^@]*'maxmemory'\.$"):
                await redis.ask("EVAL", "return redis.call('SET', 'a', 'b')", 0)
        finally:
            redis_server.call("CONFIG", "SET", "maxmemory", "0")


@pytest.mark.parametrize(
    ("mode", "text", "told"),
    [(0o640, b"x", "chmod 600"), (0o600, b"\xff", "not UTF-8"), (0o600, b"x" * 4097, "4096 bytes")],
)
async def test_a_password_file_that_will_not_do_is_refused(folder: Path, mode: int, text: bytes, told: str) -> None:
    file = folder / "password"
    file.write_bytes(text)
    file.chmod(mode)
    with pytest.raises(ConfigError, match=told):
        async with open_redis(Config(redis="redis://localhost", redis_password_file=str(file))):
            pytest.fail("opened")


async def test_one_that_may_drop_keys_or_is_a_cluster_is_refused(redis_server: RedisServer) -> None:
    redis_server.call("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
    try:
        with pytest.raises(ConfigError, match="maxmemory-policy must be noeviction, not allkeys-lru"):
            async with open_redis(config(redis_server)):
                pytest.fail("opened")
    finally:
        redis_server.call("CONFIG", "SET", "maxmemory-policy", "noeviction")
    with open_redis_server("--cluster-enabled", "yes") as server, pytest.raises(ConfigError, match="Cluster"):
        async with open_redis(config(server)):
            pytest.fail("opened")


def test_an_old_one_is_refused_and_a_valkey_is_not() -> None:
    with pytest.raises(ConfigError, match="is too old"):
        check(b"# Server\r\nredis_version:6.2.14\r\nrun_id:a\r\n")
    with pytest.raises(ConfigError, match="of no version is too old"):
        check(b"something else")
    with pytest.raises(RedisGone, match="reading its file"):
        check(b"redis_version:7.2.4\r\nloading:1\r\nrole:slave\r\n")
    assert check(b"redis_version:7.2.4\r\nserver_name:valkey\r\nvalkey_version:8.0.1\r\nrun_id:b\r\n") == "b"


def test_what_info_says_is_read_whatever_it_is() -> None:
    assert check(b"redis_version:7.0.15\r\nexecutable:/jos\xe9/redis-server\r\nrun_id:a\r\n") == "a"
    for info in (b"redis_version:" + b"9" * 5000 + b".1\r\n", [b"redis_version:7.0.15\r\n"]):
        with pytest.raises(ConfigError, match="is too old"):
            check(info)


async def test_one_comes_back_from_a_folder_that_is_not_utf8(redis_server: RedisServer) -> None:
    """Its name stands in what `INFO` says."""
    with open_redis_server() as other:
        other.kill()
        other.folder /= os.fsdecode(b"jos\xe9")
        other.folder.mkdir()
        other.start()
        async with open_led(redis_server) as (redis, cutter):
            cutter.lead(other.listen())
            cutter.cut()
            with trio.fail_after(3):
                await redis.wait(connected=False)
                await redis.wait()
            assert b"jos\xe9" in await redis.ask("INFO")


@asynccontextmanager
async def open_led(server: RedisServer) -> AsyncIterator[tuple[Redis, Cutter]]:
    """Connect with a Redis through what can lead to another."""
    async with open_cutter(server.listen()) as cutter:
        async with open_redis(Config(redis=f"redis://127.0.0.1:{cutter.port}", node_lease=2.0)) as redis:
            yield redis, cutter


async def test_one_that_was_made_a_replica_is_left_for_where_the_address_leads_now(redis_server: RedisServer) -> None:
    """As after a failover behind a name or a virtual address: what is demoted keeps its connections."""
    with open_redis_server() as other:
        async with open_led(redis_server) as (redis, cutter):
            before = redis.incarnation
            redis_server.call("REPLICAOF", "127.0.0.1", "1")  # where nobody is: it reads no file meanwhile
            try:
                with pytest.raises(ConfigError, match="a replica, which takes no writes"):
                    async with open_redis(config(redis_server)):
                        pytest.fail("opened")
                assert redis.connected
                with pytest.raises(RedisGone, match="does not answer"):
                    await redis.ask("EVAL", "return redis.call('SET', 'a', 'b')", 0)
                assert not redis.connected
                made = cutter.made
                await until(lambda: cutter.made > made)  # it still leads to the replica
                assert not redis.connected
                assert redis.fault == "Redis is a replica, which takes no writes"
                cutter.lead(other.listen())
                with trio.fail_after(5):
                    await redis.wait()
                assert redis.incarnation != before
                await redis.ask("SET", "a", "b")
            finally:
                redis_server.call("REPLICAOF", "NO", "ONE")


async def test_one_that_is_no_replica_in_step_yet_is_left_as_well() -> None:
    """It says so of what reads too. That it is another then, though no other was started, is known by its replication."""
    with open_redis_server("--replica-serve-stale-data", "no") as server:
        async with open_redis(config(server)) as redis:
            before = redis.incarnation
            server.call("REPLICAOF", "127.0.0.1", "1")
            with pytest.raises(RedisGone, match="does not answer"):
                await redis.ask("EVAL", "return redis.call('GET', 'a')", 0)
            assert not redis.connected
            server.call("REPLICAOF", "NO", "ONE")
            with trio.fail_after(5):
                await redis.wait()
            assert redis.incarnation != before
            assert await redis.ask("EVAL", "return redis.call('GET', 'a')", 0) is None


HELLO = b"%3\r\n+proto\r\n:3\r\n+version\r\n+7.0.0\r\n+id\r\n:1\r\n"


async def test_one_that_says_what_cannot_be_read_is_gone_meanwhile(redis_server: RedisServer) -> None:
    asked: list[bytes] = []

    async def answer(stream: trio.SocketStream) -> None:
        with suppress(trio.BrokenResourceError):
            async for data in stream:
                words = [word for word in data.split(b"\r\n") if word in (b"HELLO", b"INFO", b"ECHO")]
                asked.extend(words)
                await stream.send_all(b"".join(HELLO if word == b"HELLO" else b":many\r\n" for word in words))

    async with open_led(redis_server) as (redis, cutter), trio.open_nursery() as nursery:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, answer, [listener])
        async with redis.open_wire(2.0) as wire:
            assert await wire.ask_all([("ECHO", 1), ("NOPE",)]) == [b"1", ANY]
        cutter.lead(listener.socket.getsockname()[1])
        async with redis.open_wire(2.0) as wire:
            with pytest.raises(RedisGone):
                await wire.ask_all([("ECHO", 1), ("ECHO", 2)])
        cutter.cut()
        await until(lambda: asked.count(b"INFO") > 1 and "can't be read" in redis.fault)
        cutter.lead(redis_server.listen())
        with trio.fail_after(3):
            await redis.wait()
        assert await redis.ask("PING") == b"PONG"
        nursery.cancel_scope.cancel()


async def test_one_that_reads_its_file_says_so_of_all_that_is_asked_at_once(redis_server: RedisServer) -> None:
    async def answer(stream: trio.SocketStream) -> None:
        async for data in stream:
            words = [word for word in data.split(b"\r\n") if word in (b"HELLO", b"ECHO")]
            loading = b"-LOADING Redis is loading the dataset in memory\r\n"
            await stream.send_all(b"".join(HELLO if word == b"HELLO" else loading for word in words))

    async with open_led(redis_server) as (redis, cutter), trio.open_nursery() as nursery:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, answer, [listener])
        cutter.lead(listener.socket.getsockname()[1])
        async with redis.open_wire(2.0) as wire:
            with pytest.raises(RedisGone, match="reading its file"):
                await wire.ask_all([("ECHO", 1), ("ECHO", 2)])
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def open_slow_link(port: int, rate: int, upto: float = math.inf) -> AsyncIterator[int]:
    """Lead to a port of loopback: so many bytes a second go there, up to so many; yield the port."""

    async def pass_on(client: trio.SocketStream) -> None:
        server = await trio.open_tcp_stream("127.0.0.1", port)
        async with client, server, trio.open_nursery() as nursery:
            nursery.start_soon(go, client, server)
            with suppress(trio.BrokenResourceError):
                async for data in server:
                    await client.send_all(data)

    async def go(client: trio.SocketStream, server: trio.SocketStream) -> None:
        passed = 0
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            while passed < upto and (data := await client.receive_some(rate // 50)):
                await server.send_all(data)
                passed += len(data)
                await trio.sleep(len(data) / rate)
            await trio.sleep_forever() if passed >= upto else await server.send_eof()

    async with trio.open_nursery() as nursery:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        listener.socket.setsockopt(sockets.SOL_SOCKET, sockets.SO_RCVBUF, 64 * 1024)
        nursery.start_soon(trio.serve_listeners, pass_on, [listener])
        yield listener.socket.getsockname()[1]
        nursery.cancel_scope.cancel()


async def test_a_text_that_takes_long_to_go_is_waited_for(redis_server: RedisServer) -> None:
    """As one of 32 MiB does over a slow link: what comes back meanwhile is nothing."""
    async with open_slow_link(redis_server.listen(), 4_000_000) as port:
        async with open_redis(Config(redis=f"redis://127.0.0.1:{port}", node_lease=2.0)) as redis:
            told: list[bool] = []
            redis.on_change(told.append)
            began = trio.current_time()
            await redis.ask("SET", "big", b"x" * 8_000_000)
            assert trio.current_time() - began > 3 * redis.patience
            assert await redis.ask("STRLEN", "big") == 8_000_000
            assert told == []


async def test_one_that_takes_no_more_of_a_text_is_gone(redis_server: RedisServer) -> None:
    async with open_slow_link(redis_server.listen(), 4_000_000, upto=2_000_000) as port:
        async with open_redis(Config(redis=f"redis://127.0.0.1:{port}", node_lease=2.0)) as redis:
            with pytest.raises(RedisGone), trio.fail_after(3):
                await redis.ask("SET", "big", b"x" * 8_000_000)
