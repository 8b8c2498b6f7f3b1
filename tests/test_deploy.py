"""The files of docs/deploy: what they say to trio-claude is so, they agree with each other, and what they promise holds."""

from __future__ import annotations

import configparser
import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
import yaml
from harness import Backend, alive, bearing, directive, until
from program import PROGRAM, environ, trio_claude

from trio_claude.commands import keys, serve
from trio_claude.commands.settings import load
from trio_claude.config import Config
from trio_claude.containment.base import PROOF_TIMEOUT
from trio_claude.containment.guardian import children, state_of
from trio_claude.server import DOORSTEP_GRACE, FINISH_TIMEOUT

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "docs" / "deploy"
PORT = Config().port
LADDER = 1.0
"""Seconds between the SIGTERM of a run that is drained and the end of its tree (docs/promises.md)."""
TO_END = Config().drain_timeout + DOORSTEP_GRACE + LADDER + PROOF_TIMEOUT + FINISH_TIMEOUT
"""Seconds that a server takes at the most to end after SIGTERM."""
HINDERS = {
    "RestrictNamespaces", "ProtectKernelTunables", "ProtectKernelLogs", "ProcSubset", "ProtectControlGroups",
    "MemoryDenyWriteExecute", "PrivateUsers",
}  # fmt: skip
"""What of systemd's hardening keeps a run from its namespaces, its /proc, its group or the CLI's compiler."""


def unit(name: str) -> dict[str, dict[str, str]]:
    parser = configparser.ConfigParser(interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign] - keeps upper case, as documented
    parser.read_string((DEPLOY / name).read_text())
    return {section: dict(parser[section]) for section in parser.sections()}


SERVICE, SOCKET = unit("trio-claude.service")["Service"], unit("trio-claude.socket")["Socket"]
COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
MANIFESTS = {one["kind"]: one for one in yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text())}
POD = MANIFESTS["Deployment"]["spec"]["template"]["spec"]
(CONTAINER,) = POD["containers"]
IMAGE = re.sub(r"\\\n\s*", "", (DEPLOY / "Containerfile").read_text())


def said(word: str) -> str:
    """Return what the last instruction of a kind says in the Containerfile."""
    return re.findall(rf"^{word} (.*)$", IMAGE, re.MULTILINE)[-1]


def test_an_image_is_built_of_what_it_names_and_of_nothing_that_lies_about() -> None:
    first, *rest = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if not line.startswith("#")]
    copied = re.findall(r"^COPY (?!--from)(.*) \S+$", IMAGE, re.MULTILINE)
    assert first == "*"
    assert {line[1:] for line in rest if line.startswith("!")} == set(" ".join(copied).split())
    unkept = [line.strip("/") for line in (ROOT / ".gitignore").read_text().splitlines()]
    inside = {line for line in unkept if line.startswith("trio_claude/")}
    assert inside | {"**/__pycache__", "**/node_modules"} == {line for line in rest if not line.startswith("!")}


SERVES = {
    "systemd": shlex.split(SERVICE["ExecStart"])[2:],
    "image": json.loads(said("CMD"))[1:],
    "compose": COMPOSE["services"]["server"]["command"][1:],
    "kubernetes": CONTAINER["args"][1:],
}
HEALTH = json.loads(said("HEALTHCHECK").partition(" CMD ")[2])


@pytest.mark.parametrize("words", SERVES.values(), ids=SERVES)
def test_every_option_that_is_given_to_serve_exists(words: list[str]) -> None:
    context = serve.command.make_context("serve", list(words))
    values = {name: value for name, value in context.params.items() if value not in (None, ())}
    values.pop("config_file", None)
    assert load(values).drain_timeout == Config().drain_timeout


def test_a_pod_hears_nothing_of_services_as_if_it_were_a_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kubernetes tells a pod of each service of its namespace by variables, unless it is told not to."""
    name = MANIFESTS["Service"]["metadata"]["name"].upper().replace("-", "_")
    if POD.get("enableServiceLinks", True):
        monkeypatch.setenv(f"{name}_PORT", "tcp://10.0.0.1:3000")
    assert load({}) == Config()


def test_whatever_is_begun_is_serve_and_a_key_is_made_by_keys() -> None:
    assert shlex.split(SERVICE["ExecStart"])[:2] == ["/opt/trio-claude/bin/trio-claude", "serve"]
    assert json.loads(said("ENTRYPOINT")) == ["trio-claude"]
    for words in (json.loads(said("CMD")), COMPOSE["services"]["server"]["command"], CONTAINER["args"]):
        assert words[0] == "serve"
    (line,) = COMPOSE["services"]["key"]["command"]
    made = shlex.split(line.partition(" || ")[2])
    assert made[:2] == ["trio-claude", "keys"]
    assert keys.command.commands[made[2]].make_context("add", made[3:]).params["file"]


def test_the_settings_of_the_unit_are_the_example(tmp_path: Path) -> None:
    """Its folders are those that the unit lets the server write to, and the socket is where the settings say."""
    config = load({}, ROOT / "docs" / "examples" / "hardened.toml")
    assert config.state == f"/var/lib/{SERVICE['StateDirectory']}"
    assert config.keys.startswith(config.state)
    assert SOCKET["ListenStream"] == f"{config.host}:{config.port}"


def test_the_ports_agree() -> None:
    assert SOCKET["ListenStream"].endswith(f":{PORT}")
    assert int(said("EXPOSE")) == PORT
    assert f":{PORT}/healthz" in HEALTH[-1]
    assert COMPOSE["services"]["server"]["ports"] == [f"127.0.0.1:{PORT}:{PORT}"]
    (port,) = CONTAINER["ports"]
    (served,) = MANIFESTS["Service"]["spec"]["ports"]
    assert (port["containerPort"], served["port"], served["targetPort"]) == (PORT, PORT, port["name"])


def test_a_server_that_can_not_start_for_now_is_never_given_up() -> None:
    """systemd takes five starts in ten seconds; then it starts a unit no more, nor listens for it."""
    assert 5 * int(SERVICE["RestartSec"]) >= 10


def test_there_is_time_to_drain() -> None:
    assert int(SERVICE["TimeoutStopSec"]) > TO_END
    assert int(COMPOSE["services"]["server"]["stop_grace_period"].removesuffix("s")) > TO_END
    _, seconds = CONTAINER["lifecycle"]["preStop"]["exec"]["command"]
    assert POD["terminationGracePeriodSeconds"] > int(seconds) + TO_END


def test_nobody_is_root() -> None:
    assert SERVICE["User"] != "root"
    user, _, group = said("USER").partition(":")
    assert int(user) >= 1000
    assert f"useradd --uid {user} " in IMAGE
    for one in COMPOSE["services"].values():
        assert (one["user"], one["cap_drop"], one["read_only"]) == (f"{user}:{group}", ["ALL"], True)
    pod, own = POD["securityContext"], CONTAINER["securityContext"]
    assert (pod["runAsNonRoot"], pod["runAsUser"], pod["runAsGroup"]) == (True, int(user), int(group))
    assert (own["allowPrivilegeEscalation"], own["readOnlyRootFilesystem"], own["capabilities"]) == (
        False, True, {"drop": ["ALL"]},
    )  # fmt: skip


def test_what_is_read_only_has_a_place_for_all_that_is_written() -> None:
    home = re.search(r"HOME=(\S+)", said("ENV"))
    assert home
    assert COMPOSE["services"]["server"]["volumes"] == [f"state:{home[1]}"]
    assert COMPOSE["services"]["server"]["tmpfs"][0].startswith("/tmp:exec")  # the CLI loads libraries from there
    assert {home[1], "/tmp"} <= {mount["mountPath"] for mount in CONTAINER["volumeMounts"]}
    assert {mount["name"] for mount in CONTAINER["volumeMounts"]} == {volume["name"] for volume in POD["volumes"]}
    assert (
        POD["volumes"][0]["persistentVolumeClaim"]["claimName"]
        == MANIFESTS["PersistentVolumeClaim"]["metadata"]["name"]
    )


def test_a_service_finds_its_pods() -> None:
    labels = MANIFESTS["Deployment"]["spec"]["template"]["metadata"]["labels"]
    assert MANIFESTS["Deployment"]["spec"]["selector"]["matchLabels"] == labels
    assert MANIFESTS["Service"]["spec"]["selector"] == labels


# -- systemd ----------------------------------------------------------------------------------------------------------


def test_the_unit_leaves_out_what_a_run_needs() -> None:
    assert not HINDERS & set(SERVICE)
    assert (SERVICE["Type"], SERVICE["KillMode"], SERVICE["Delegate"]) == ("notify", "mixed", "yes")
    assert "@mount" in SERVICE["SystemCallFilter"]


@pytest.fixture
def units(tmp_path: Path) -> list[Path]:
    """The units with a program that is there."""
    paths = []
    for name in ("trio-claude.service", "trio-claude.socket"):
        paths.append(tmp_path / name)
        paths[-1].write_text((DEPLOY / name).read_text().replace("/opt/trio-claude/bin/trio-claude", sys.executable))
    return paths


@pytest.mark.systemd
def test_systemd_finds_nothing_wrong_with_the_units(units: list[Path]) -> None:
    told = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *units], capture_output=True, text=True, check=False
    )
    assert (told.returncode, told.stderr) == (0, "")


@pytest.mark.systemd
def test_the_unit_is_exposed_to_little(units: list[Path]) -> None:
    words = ["systemd-analyze", "security", "--offline=true", "--no-pager", "--threshold=35", units[0]]
    told = subprocess.run(words, capture_output=True, text=True, check=False)
    assert told.returncode == 0, told.stdout


# -- the first process of a container ---------------------------------------------------------------------------------


@attrs.frozen
class World:
    """A server that is the first process of a PID namespace, alone in a network namespace: `pid` as it is outside."""

    process: trio.Process
    pid: int

    async def within(self, *words: str, **more: Any) -> subprocess.CompletedProcess[bytes]:
        """Run a program in there, as `docker exec` does."""
        entering = ["nsenter", "--target", str(self.pid), "--net", "--pid", "--mount"]
        with trio.fail_after(60):
            return await trio.run_process(
                [*entering, *words], check=False, capture_stdout=True, capture_stderr=True, **more
            )

    def zombies(self) -> list[int]:
        return [pid for pid in children(self.pid) if state_of(pid)[:1] == ["Z"]]


@asynccontextmanager
async def contained(fake: Backend, file: Path) -> AsyncIterator[World]:
    """Start a server as the image does, but for where its keys are."""
    words = [word.replace("/var/lib/trio-claude/keys.json", str(file)) for word in SERVES["image"]]
    world = ["unshare", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"]
    process = await trio.lowlevel.open_process(
        [*world, "sh", "-ec", 'ip link set lo up; exec "$@"', "sh", *PROGRAM, "serve", *words],
        env={name: value for name, value in environ(fake).items() if name != "TRIO_CLAUDE_CWD"},
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd="/",
    )  # fmt: skip
    try:
        told = b""
        with trio.fail_after(30):
            while b"listening on" not in told:
                told += await process.stdout.receive_some()
        yield World(process, children(process.pid)[0])
    finally:
        if process.returncode is None:
            process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()
            await process.stdout.aclose()


@pytest.mark.root
@pytest.mark.netns
async def test_the_first_process_of_a_container_reaps_answers_and_drains(fake: Backend, folder: Path) -> None:
    file = folder / "keys.json"
    made = await trio_claude("keys", "add", "first", "--file", str(file), env=environ(fake))
    env = {**fake.environ, "TRIO_CLAUDE_KEY": made.stdout.decode().strip()}
    ask = [*PROGRAM, "ask", "--url", f"http://127.0.0.1:{PORT}"]
    async with contained(fake, file) as world:
        assert (await world.within(sys.executable, *HEALTH[1:])).returncode == 0
        await probe(world)
        told = await world.within(
            *ask, directive("tree", kinds=["setsid", "double_fork"], seconds=60, then="exit"), env=env
        )
        assert b" 0 left, " in told.stderr, told
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: world.within(*ask, directive("slow", n=40, ms=50), env=env))
            await until(lambda: len(bearing(f"LC_TEST={fake.mark}")) > 2, 20)
            lost = children(world.pid)[0]
            os.kill(lost, signal.SIGKILL)  # the zygote: its supervisor is given to the first process
            await until(lambda: len(children(world.pid)) > 1 and lost not in children(world.pid))
            await world.within("sh", "-c", "setsid sleep 0.2 & setsid sleep 0.3 &")
        await until(lambda: world.zombies(), 5)
        await until(lambda: not world.zombies(), 10)
        os.kill(world.pid, signal.SIGTERM)
        with trio.fail_after(20):
            assert await world.process.wait() == 0
    assert not [pid for pid in bearing(f"LC_TEST={fake.mark}") if alive(pid)]


async def probe(world: World) -> None:
    """Ask as a kubelet does; without the header of the manifest it would be turned away."""
    for kind in ("startupProbe", "livenessProbe", "readinessProbe"):
        asked = CONTAINER[kind]["httpGet"]
        headers = {one["name"]: one["value"] for one in asked["httpHeaders"]}
        assert b"200" in await status(world, asked["path"], headers)
    assert b"403" in await status(world, "/readyz", {"Host": "10.1.2.3:3000"})


async def status(world: World, path: str, headers: dict[str, str]) -> bytes:
    words = f"c = http.client.HTTPConnection('127.0.0.1', {PORT}); c.request('GET', {path!r}, headers={headers!r})"
    program = f"import http.client; {words}; print(c.getresponse().status)"
    return (await world.within(sys.executable, "-c", program)).stdout
