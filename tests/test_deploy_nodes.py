"""The files of docs/deploy/nodes: they agree with each other, with the program's words, and nginx and Redis do as they say."""

from __future__ import annotations

import re
import shlex
import shutil
import socket
import subprocess
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import attrs
import pytest
import trio
import yaml
from harness import Backend, ask, until
from redis_server import RedisServer

from trio_claude.commands import keys, serve
from trio_claude.commands.settings import load
from trio_claude.config import Config
from trio_claude.containment.base import PROOF_TIMEOUT
from trio_claude.nodes.password import read_password
from trio_claude.nodes.redis import check
from trio_claude.server import DOORSTEP_GRACE, FINISH_TIMEOUT

DEPLOY = Path(__file__).parents[1] / "docs" / "deploy"
NODES = DEPLOY / "nodes"
COMPOSE = yaml.safe_load((NODES / "compose.yml").read_text())
SERVICES = COMPOSE["services"]
NODE_NAMES = ["node1", "node2", "node3"]
NGINX = (NODES / "nginx.conf").read_text()
USER = re.findall(r"^USER (\S+)$", (DEPLOY / "Containerfile").read_text(), re.MULTILINE)[-1]
LADDER = 1.0
"""Seconds between the SIGTERM of a run that is drained and the end of its tree (docs/promises.md)."""
ATTEMPTS = 9


# -- words that must be the same --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NODE_NAMES)
def test_a_node_is_served_with_options_that_exist_and_files_that_it_has(name: str) -> None:
    one = SERVICES[name]
    context = serve.command.make_context("serve", one["command"][1:])
    config = load({key: value for key, value in context.params.items() if value not in (None, ())})
    assert one["command"][0] == "serve"
    assert urlsplit(config.redis).hostname in SERVICES
    mounted = [volume.split(":")[1] for volume in one["volumes"]]
    assert {str(Path(path).parent) for path in (config.keys, config.redis_password_file)} == set(mounted)
    assert config.trusted_proxies == (SERVICES["nginx"]["networks"]["front"]["ipv4_address"],)
    to_end = config.drain_timeout + DOORSTEP_GRACE + LADDER + PROOF_TIMEOUT + FINISH_TIMEOUT
    assert int(one["stop_grace_period"].removesuffix("s")) > to_end


def test_nginx_leads_to_the_nodes_and_is_where_clients_look() -> None:
    assert re.findall(r"^\s*server (\w+):(\d+) ", NGINX, re.MULTILINE) == [(name, "3000") for name in NODE_NAMES]
    (port,) = re.findall(r"^\s*listen (\d+);", NGINX, re.MULTILINE)
    assert SERVICES["nginx"]["ports"] == [f"127.0.0.1:{Config().port}:{port}"]
    assert {*NODE_NAMES} == {*SERVICES["nginx"]["depends_on"]}
    (silence,) = re.findall(r"proxy_read_timeout (\d+)s", NGINX)
    assert int(silence) > Config().ping_interval + Config().ping_timeout


def test_only_nodes_reach_redis_and_nothing_but_nginx_is_published() -> None:
    assert COMPOSE["networks"]["redis"]["internal"] is True
    assert {name for name, one in SERVICES.items() if "redis" in one.get("networks", ())} == {"redis", *NODE_NAMES}
    assert [name for name, one in SERVICES.items() if "ports" in one] == ["nginx"]


def test_nobody_is_root_and_may_write_but_where_it_must() -> None:
    for one in SERVICES.values():
        assert (one["user"], one["cap_drop"], one["read_only"]) == (USER, ["ALL"], True)
        assert one["security_opt"] == ["no-new-privileges:true"]


def test_every_volume_and_file_that_is_mounted_is_there() -> None:
    for one in SERVICES.values():
        for source in (volume.split(":")[0] for volume in one["volumes"]):
            assert source in COMPOSE["volumes"] or (NODES / source).is_file(), source


def test_the_volumes_belong_to_the_user_of_the_image() -> None:
    """A volume gets the owner of the folder of the image on which it is mounted first."""
    home = SERVICES["node1"]["volumes"][0].split(":")[1]
    once = {name: one["volumes"] for name, one in SERVICES.items() if one.get("network_mode") == "none"}
    makers = {volume.removesuffix(f":{home}"): name for name, volumes in once.items() for volume in volumes}
    assert makers.keys() == COMPOSE["volumes"].keys()
    for name, one in SERVICES.items():
        mounted = {volume.split(":")[0] for volume in one["volumes"]} & makers.keys()
        assert {makers[volume] for volume in mounted} <= waited_for(name) | {name}


def waited_for(name: str) -> set[str]:
    """Return the services that end or are well before another one begins."""
    below = SERVICES[name].get("depends_on", ())
    return {*below, *(further for one in below for further in waited_for(one))}


# -- what is made at the first start ----------------------------------------------------------------------------------


def test_the_key_and_the_password_are_made_once(tmp_path: Path) -> None:
    (line,) = SERVICES["key"]["command"]
    made = shlex.split(line.partition(" || ")[2])
    assert made[:2] == ["trio-claude", "keys"]
    assert keys.command.commands[made[2]].make_context("add", made[3:]).params["file"]
    told = []
    for _ in range(2):
        make_password(tmp_path)
        told.append(read_password(tmp_path / "password"))
    assert told[0] == told[1]
    assert len(told[0]) >= 40
    assert (tmp_path / "password.conf").read_text() == f"requirepass {told[0]}\n"
    assert (tmp_path / "password.conf").stat().st_mode & 0o077 == 0


@pytest.mark.redis
async def test_a_redis_with_these_settings_will_do_and_tells_nobody_without_the_password(folder: Path) -> None:
    make_password(folder)
    password = read_password(folder / "password")
    assert SERVICES["redis"]["command"][0] == "valkey-server"
    here = {"/etc/redis.conf": str(NODES / "redis.conf"), "/run/redis/password.conf": str(folder / "password.conf")}
    words = ["redis-server", *(here.get(word, word) for word in SERVICES["redis"]["command"][1:])]
    words += ["--port", "0", "--unixsocket", "redis.sock"]
    with subprocess.Popen(words, cwd=folder, stdout=subprocess.DEVNULL) as process:
        try:
            redis = RedisServer(folder)
            await until(lambda: redis.call("PING").startswith(b"NOAUTH"))
            assert redis.call("XRANGE", "trio-claude:lines:x", "-", "+").startswith(b"NOAUTH")
            known = ["--no-auth-warning", "--pass", password]
            for setting in ("appendonly yes", "appendfsync everysec", "maxmemory-policy noeviction", "save"):
                assert redis.call(*known, "CONFIG", "GET", setting.split()[0]).decode().split() == setting.split()
            assert check(redis.call(*known, "INFO"))
        finally:
            process.kill()


def make_password(folder: Path) -> None:
    """Do what is done before the first start."""
    (script,) = SERVICES["password"]["command"]
    subprocess.run([*SERVICES["password"]["entrypoint"], script.replace("$$", "$")], cwd=folder, check=True)


# -- nginx before real nodes ------------------------------------------------------------------------------------------


@attrs.frozen
class Proxy:
    port: int


def free_ports(count: int) -> list[int]:
    probes = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports


@asynccontextmanager
async def proxied(folder: Path, nodes: Iterable[int]) -> AsyncIterator[Proxy]:
    """Start nginx with the file as it is, but for where it listens and where its nodes are."""
    (port,) = free_ports(1)
    text = NGINX.replace("listen 3000", f"listen 127.0.0.1:{port}")
    for name, node in zip(NODE_NAMES, nodes, strict=True):
        text = text.replace(f"{name}:3000", f"127.0.0.1:{node}")
    (folder / "nginx.conf").write_text(text)
    words = [shutil.which("nginx") or "nginx", "-p", str(folder), "-c", str(folder / "nginx.conf"), "-e", "stderr"]
    told = await trio.run_process([*words, "-t"], capture_stderr=True, check=False)
    assert told.returncode == 0, told.stderr
    async with trio.open_nursery() as nursery:
        nursery.start_soon(partial(trio.run_process, words, check=False, stderr=subprocess.DEVNULL))
        await until(lambda: (folder / "nginx.pid").exists() and (folder / "nginx.pid").read_text())
        yield Proxy(port)
        nursery.cancel_scope.cancel()


async def answer_to(proxy: Proxy, method: str) -> bytes:
    """Return what comes first of the answer to a request."""
    async with await trio.open_tcp_stream("127.0.0.1", proxy.port) as stream:
        await stream.send_all(f"{method} /api/x HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n".encode())
        return bytes(await stream.receive_some())


@pytest.mark.nginx
async def test_a_node_that_ends_costs_nobody_an_attempt(fake: Backend, folder: Path) -> None:
    (port,) = free_ports(1)
    async with (
        fake.serve() as second,
        fake.serve() as third,
        proxied(folder, [port, second.port, third.port]) as proxy,
    ):
        async with fake.serve(port=port):
            codes = [(await ask(proxy, "hello")).code for _ in range(ATTEMPTS)]
        codes += [(await ask(proxy, "hello")).code for _ in range(ATTEMPTS)]
    assert codes == [1000] * 2 * ATTEMPTS


@pytest.mark.nginx
@pytest.mark.parametrize(("method", "times"), [("GET", 3), ("POST", 1), ("DELETE", 1)])
async def test_what_was_sent_is_said_again_only_where_it_does_no_harm(folder: Path, method: str, times: int) -> None:
    """Each node takes a request and breaks off without an answer."""
    heard: Counter[str] = Counter()

    async def break_off(stream: trio.SocketStream) -> None:
        heard[(await stream.receive_some()).split(b" ")[0].decode()] += 1
        await stream.aclose()

    async with trio.open_nursery() as nursery:
        listeners = [await nursery.start(partial(trio.serve_tcp, break_off, 0, host="127.0.0.1")) for _ in NODE_NAMES]
        ports = [one.socket.getsockname()[1] for (one,) in listeners]
        async with proxied(folder, ports) as proxy:
            told = await answer_to(proxy, method)
        nursery.cancel_scope.cancel()
    assert told.startswith(b"HTTP/1.1 502 ")
    assert heard == {method: times}


@pytest.mark.nginx
async def test_what_was_not_sent_goes_to_the_next_node(folder: Path) -> None:
    """A POST too, which is never said twice."""

    async def answer(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        await stream.send_all(b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n")

    async with trio.open_nursery() as nursery:
        (listener,) = await nursery.start(partial(trio.serve_tcp, answer, 0, host="127.0.0.1"))
        async with proxied(folder, [*free_ports(2), listener.socket.getsockname()[1]]) as proxy:
            assert (await answer_to(proxy, "POST")).startswith(b"HTTP/1.1 204 ")
        nursery.cancel_scope.cancel()
