"""The table of peers: what each is, how it is started, and what one must know to read its figures.

It starts nothing; `subject` does.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import attrs

from . import install
from .native import PEERS, Native

OURS = "trio-claude"
MOST_RUNS = 2000


@attrs.frozen
class Peer:
    """A server that speaks the contract.

    `command` takes the programs, the CLI and a port. `ours` means that it picks its own port and prints it, and that
    its helpers count as part of it.
    """

    name: str
    title: str
    command: Callable[[Native, Path, int], list[str]]
    version: Callable[[], str]
    note: str = ""
    path: str = "/ws/claude"
    ours: bool = False


def _ours(*more: str) -> Callable[[Native, Path, int], list[str]]:
    def command(_native: Native, cli: Path, _port: int) -> list[str]:
        words = [sys.executable, "-m", "trio_claude", "serve", "--port", "0", "--cli", str(cli)]
        return [*words, "--max-runs", str(MOST_RUNS), "--journal", "none", *more]

    return command


def _python(name: str) -> Callable[[Native, Path, int], list[str]]:
    return lambda _native, cli, port: [str(install.python()), str(PEERS / f"{name}.py"), str(port), str(cli)]


def _bun(name: str) -> Callable[[Native, Path, int], list[str]]:
    def command(_native: Native, cli: Path, port: int) -> list[str]:
        return [str(install.bun()), str(install.node_folder() / f"{name}.ts"), str(port), str(cli)]

    return command


def _node(_native: Native, cli: Path, port: int) -> list[str]:
    return [str(install.system("node")), str(install.node_folder() / "node_ws.mjs"), str(port), str(cli)]


def _relay(native: Native, cli: Path, port: int) -> list[str]:
    return [str(native.relay), str(port), str(cli)]


def _websocketd(_native: Native, cli: Path, port: int) -> list[str]:
    program = str(install.system("websocketd"))
    return [program, "--address", "127.0.0.1", "--port", str(port), "--loglevel", "fatal", str(cli), "alone"]


def _packages(*names: str) -> Callable[[], str]:
    return lambda: ", ".join(f"{name} {install.package_version(name)}" for name in names)


def _node_version() -> str:
    return f"Node {install.program_version(install.system('node'))}, ws {install.npm_version('ws')}"


def _bun_version() -> str:
    return f"Bun {install.npm_version('bun')}"


def _websocketd_version() -> str:
    return install.program_version(install.system("websocketd"))


VERBATIM = "/ws/claude?frames=verbatim"
CHILD_ONLY = "at the end it kills its child only"
ALL = (
    Peer(
        OURS, "trio-claude", _ours(), install.ours_version,
        "containment on (auto: in a namespace where it may); history off", VERBATIM, ours=True,
    ),
    Peer(
        "supervisor", "trio-claude, supervisor", _ours("--containment", "supervisor"), install.ours_version,
        "containment on, without a namespace; history off", VERBATIM, ours=True,
    ),
    Peer("c", "C relay", _relay, lambda: "cc -O2", "the limit: no limits, deadlines or pings; killpg at the end"),
    Peer("bun-corked", "Bun, corked", _bun("bun_corked"), _bun_version, CHILD_ONLY),
    Peer("bun-original", "Bun, original design", _bun("bun_original"), _bun_version, f"a send a line; {CHILD_ONLY}"),
    Peer("picows", "picows + uvloop", _python("picows_server"), _packages("picows", "uvloop"), CHILD_ONLY),
    Peer("node", "Node + ws", _node, _node_version, f"does not look at bufferedAmount; {CHILD_ONLY}"),
    Peer("websockets", "Python websockets", _python("websockets_server"), _packages("websockets"), CHILD_ONLY),
    Peer("aiohttp", "aiohttp", _python("aiohttp_server"), _packages("aiohttp"), CHILD_ONLY),
    Peer(
        "fastapi", "FastAPI + uvicorn", _python("fastapi_server"), _packages("fastapi", "uvicorn", "websockets"),
        CHILD_ONLY,
    ),
    Peer(
        "stock", "stock trio-websocket", _python("stock_trio_websocket"), _packages("trio-websocket", "trio"),
        CHILD_ONLY,
    ),
    Peer(
        "websocketd", "websocketd", _websocketd, _websocketd_version,
        "sends no info frame and hands the message on: its child says and reads both; it ends without a close frame",
        path="/",
    ),
)  # fmt: skip
BY_NAME = {peer.name: peer for peer in ALL}
