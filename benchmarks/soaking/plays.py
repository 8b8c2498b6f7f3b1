"""What clients do: each play is one client's, or a few clients', with one run; good ones, bad ones, and their CLIs.

A play raises `Wrong` for an answer that must not be. This module must never judge what the log or the journal says.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from random import Random
from typing import Any

import attrs
import trio
from chaos import first, guardians, held, send
from cutter import open_cutter
from harness import call, directive

from trio_claude.client import Allow, Approval, ConnectFailed, Deny, Reconnect, Refused, Result, Session, open_session
from trio_claude.errors import Draining

from .house import LOOK_PAUSE, House
from .truth import Run, Told, Truth
from .wire import RESULT, Client, Gone, Seen, connecting

PLAY_BOUND = 60.0
"""Seconds in which every play has come to its end, on a busy machine."""
LOG_BOUND = 20.0
"""Seconds in which the log tells of a run's start or end."""
FLOOD = 100_000
"""Lines of a flood at most."""
KINDS = ("plain", "setsid", "double_fork", "ignore_term", "env_clear", "stopped", "hold_stdout")
STAY = 60
"""Seconds for which daemons stay, unless they are ended."""
GRACE = 8.0
"""Seconds for which a run waits for a client that means to come back."""
WAY = 20
"""Losses and returns of a connection that are told where the client library gives up."""
LONG_GRACE = 20.0
"""The same where the network breaks again and again, on a machine that has no time left."""
SHORT_GRACE = 0.6
REAL_DAEMON = "(setsid sleep 60 >/dev/null 2>&1 &); touch ready"
DAEMONS = "sleep 60 & setsid sleep 60 & setsid sh -c 'setsid sleep 60 & exit 0'; echo ready"
REAL = "claude-haiku-4-5"
"""The model by whose name a run gets the real CLI."""
REAL_AT_ONCE = 2
"""Real CLIs at once: each takes 100 to 130 MB."""


class Wrong(Exception):
    """An answer that must not be."""


def expect(holds: object, text: object) -> None:
    """Raise `Wrong` unless something holds."""
    if not holds:
        raise Wrong(str(text))


@attrs.define(eq=False)
class Table:
    """What a play has at hand."""

    house: House
    truth: Truth
    rng: Random
    run: Run
    real: trio.CapacityLimiter
    _life: int = attrs.field(init=False)
    _deaf: trio.Event = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self._life, self._deaf = self.house.life, self.house.deaf

    @property
    def fell(self) -> bool:
        """Whether the server has gone down since."""
        return self.house.fell(self._life)

    @property
    def port(self) -> int:
        """The server's port."""
        return self.house.port

    def client(self, *, owner: bool = True, after: int = 0) -> Seen:
        """Return what another client of the run will be told."""
        return self.run.client(owner=owner, after=after)

    async def started(self) -> None:
        """Wait until the log has the run's start. Raises `Gone` where the log ends first."""
        with trio.fail_after(LOG_BOUND):
            await self._told(self.run.started)

    async def over(self, bound: float = LOG_BOUND) -> None:
        """Wait until the log has the run's end. Raises `Gone` where the log ends first."""
        with trio.fail_after(bound):
            await self._told(self.run.over)

    async def _told(self, event: trio.Event) -> None:
        await first(event.wait, self._deaf.wait)
        if not event.is_set():
            raise Gone("the server's log has ended")

    def reason(self, *names: str) -> None:
        """Expect the run to have ended for one of these reasons."""
        reason = (self.run.outcome or {}).get("reason")
        expect(reason in names, f"ended as {reason}, not {names}: {self.run.outcome}")


Play = Callable[[Table], Awaitable[None]]


@attrs.frozen
class Kind:
    """A play: its door, how often it comes up, and whether it takes the real CLI."""

    name: str
    how: Play
    door: str
    weight: float
    real: bool = False


PLAYS: dict[str, Kind] = {}


def play(weight: float, door: str = "claude", *, real: bool = False) -> Callable[[Play], Play]:
    """Register a play under its function's name."""

    def register(how: Play) -> Play:
        name = how.__name__.replace("_", "-")
        PLAYS[name] = Kind(name, how, door, weight, real)
        return how

    return register


# -- what CLIs are told -----------------------------------------------------------------------------------------------


@attrs.frozen
class Script:
    """A prompt, and how many numbered lines come of it, None where that is not known."""

    text: str
    lines: int | None = None


def lines(rng: Random, most: int = 400) -> Script:
    """Return numbered lines: all at once, or at a rate, two seconds of it at most."""
    count, size = rng.randint(1, most), rng.choice((0, 80, 300, 2000))
    rate = rng.choice((0, 0, max(100, count // 2)))
    return Script(directive("lines", n=count, size=size, rate=rate), count)


def tree(rng: Random, then: str = "") -> str:
    """Return what leaves processes behind."""
    kinds = rng.sample(KINDS, rng.randint(1, 4)) + ["comet"] * (rng.random() < 0.05)
    return directive("tree", kinds=kinds, seconds=STAY, **({"then": then} if then else {}))


def good(rng: Random) -> Script:
    """Return a prompt whose turn comes to a good end."""
    said = lines(rng)
    return rng.choice(
        (
            said, said, said,
            Script(directive("text", text="x" * rng.randint(1, 5000))),
            Script(directive("think")),
            Script(directive("slow", n=rng.randint(1, 30), ms=10)),
            Script(directive("many", n=rng.randint(1, 500))),
            Script(f"{directive('stderr', n=rng.randint(1, 20))} {said.text}", said.lines),
            Script(f"{said.text} {tree(rng)}", said.lines),
            Script("hello"),
        )
    )  # fmt: skip


def endless(rng: Random) -> Script:
    """Return a prompt whose turn ends only with its run."""
    return Script(
        rng.choice(
            (
                directive("lines", n=10**7, rate=rng.choice((20, 500))),
                directive("silent"),
                directive("hang"),
                tree(rng, "stay"),
                directive("closeout"),
                directive("silent", ignore_term=True),
                f"{directive('stderr', n=5)} {directive('slow', n=2000, ms=50)}",
            )
        )
    )


# -- /ws/claude -------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def prompting(table: Table, script: Script, **options: object) -> AsyncIterator[Client]:
    """Connect and say a prompt."""
    seen = table.client()
    seen.wanted = script.lines
    async with connecting(table.port, "claude", seen) as client:
        await client.until(b'{"info":"send ')
        await client.say({"prompt": script.text, "meta": table.run.meta, **options})
        yield client


async def read_to(client: Client, code: int, *, slowly: float = 0.0) -> None:
    """Read to the close, which must have this code."""
    await client.read(slowly=slowly)
    seen = client.seen
    expect(seen.code == code, f"closed with {seen.code} ({seen.reason}) {seen.error}, not {code}")


@play(20)
async def prompt(table: Table) -> None:
    """Have a prompt answered."""
    async with prompting(table, good(table.rng)) as client:
        await read_to(client, 1000)
        expect(client.seen.results == 1, f"{client.seen.results} results")


@play(4)
async def slow_reader(table: Table) -> None:
    """Read slowly what comes fast."""
    count = table.rng.randint(1000, 5000)
    async with prompting(table, Script(directive("lines", n=count, size=300), count)) as client:
        client.narrow()
        await read_to(client, 1000, slowly=0.05)


@play(0.7)
async def flood(table: Table) -> None:
    """Read a flood."""
    count = table.rng.randint(FLOOD // 10, FLOOD)
    async with prompting(table, Script(directive("lines", n=count), count)) as client:
        await read_to(client, 1000)


@play(7)
async def reset(table: Table) -> None:
    """Vanish at some moment."""
    script = endless(table.rng) if table.rng.random() < 0.7 else good(table.rng)
    async with prompting(table, script) as client:
        with trio.move_on_after(table.rng.uniform(0, 1.2)):
            await client.read()
        client.reset()


@play(3)
async def early_reset(table: Table) -> None:
    """Vanish while the run starts."""
    async with prompting(table, endless(table.rng)) as client:
        await trio.sleep(table.rng.uniform(0, 0.06))
        client.reset()


@play(3)
async def fin(table: Table) -> None:
    """Leave in order, with a close frame or without one."""
    async with prompting(table, endless(table.rng)) as client:
        with trio.move_on_after(table.rng.uniform(0, 0.8)):
            await client.read()
        client.finish(politely=table.rng.random() < 0.5)
        with trio.move_on_after(5):
            await client.read()


@play(1)
async def half_open(table: Table) -> None:
    """Say and hear nothing any more, without leaving."""
    count = table.rng.choice((20, 10**6))
    async with prompting(table, Script(directive("lines", n=10**7, rate=count))):
        await table.started()
        await table.over(PLAY_BOUND)
        table.run.seen[0].partial = True
        table.reason("disconnected")


@play(5)
async def crash(table: Table) -> None:
    """Have a CLI that dies, with daemons of its own or without."""
    said = lines(table.rng, 50)
    how, code = table.rng.choice(
        (
            (directive("exit", status=3), 1011),
            (directive("exit", status=0), 1000),
            (directive("signal", n=signal.SIGSEGV), 1011),
            (directive("signal", n=signal.SIGKILL), 1011),
            (tree(table.rng, "exit"), 1000),
            (f"{tree(table.rng)} {directive('signal', n=signal.SIGKILL)}", 1011),
        )
    )
    async with prompting(table, Script(f"{said.text} {how}")) as client:
        await read_to(client, code)
        expect(client.seen.last >= (said.lines or 0), f"{client.seen.last} lines of {said.lines} before the crash")


@play(3)
async def linger(table: Table) -> None:
    """Have a CLI that lives on after its result, deaf to SIGTERM or not."""
    said = lines(table.rng, 50)
    deaf = table.rng.random() < 0.3
    script = Script(f"{said.text} {directive('linger', seconds=60, ignore_term=deaf)}", said.lines)
    async with prompting(table, script) as client:
        await read_to(client, 1000)


@play(3)
async def deadline(table: Table) -> None:
    """Let the time run out."""
    async with prompting(table, endless(table.rng), timeout=round(table.rng.uniform(0.3, 1.2), 3)) as client:
        await read_to(client, 1011)
        await table.over()
        table.reason("deadline")


@play(2)
async def second_prompt(table: Table) -> None:
    """Say more than one prompt: once, which is refused, or so often that the run is ended."""
    often = table.rng.random() < 0.5
    async with prompting(table, endless(table.rng) if often else good(table.rng)) as client:
        await table.started()
        table.run.strikes = often
        for _ in range(8 if often else 1):
            await client.say({"prompt": "and?", "meta": table.run.meta})
        await read_to(client, 1008 if often else 1000)


@play(2)
async def bad_first(table: Table) -> None:
    """Say something wrong first, or nothing at all."""
    wrong = (
        "", "{", "[]", "null", '{"prompt":1,"meta":"T"}', '{"prompt":"x"}', '{"prompt":"x","meta":"lower"}',
        '{"prompt":"x","meta":"T","tools":[]}', '{"prompt":"\\ud800","meta":"T"}', None,
    )  # fmt: skip
    said = table.rng.choice(wrong)
    async with connecting(table.port, "claude", Seen("claude")) as client:
        await client.until(b'{"info":"send ')
        if said is None:
            client.reset()
            return
        await client.say(said)
        await read_to(client, 1008)


@play(3)
async def deleted(table: Table) -> None:
    """Have a run ended by a request."""
    async with prompting(table, endless(table.rng)) as client:
        await table.started()
        await trio.sleep(table.rng.uniform(0, 0.3))
        status, _, body = await call(table.house, f"/api/runs/{table.run.id}?state=live", method="DELETE")
        expect(status == 202, f"{status}: {body[:200]!r}")
        await read_to(client, 1000)
        await table.over()
        table.reason("stopped")


@play(2)
async def stopped_cli(table: Table) -> None:
    """Have a CLI that the kernel has stopped."""
    async with prompting(table, endless(table.rng), timeout=round(table.rng.uniform(0.8, 1.5), 3)) as client:
        await table.started()
        signal_run(table, signal.SIGSTOP)
        if table.rng.random() < 0.5:
            await read_to(client, 1011)
        else:
            await trio.sleep(table.rng.uniform(0, 0.5))
            client.reset()


@play(2)
async def killed_cli(table: Table) -> None:
    """Have a CLI that somebody kills."""
    async with prompting(table, endless(table.rng)) as client:
        await table.started()
        await trio.sleep(table.rng.uniform(0, 0.3))
        signal_run(table, signal.SIGKILL)
        await read_to(client, 1011)


def signal_run(table: Table, number: int) -> None:
    """Send a signal to the CLI, if it is there still."""
    if table.run.pid in table.house.left_of(table.run.id):
        with contextlib.suppress(ProcessLookupError):
            os.kill(table.run.pid, number)


@play(0.4)
async def killed_supervisor(table: Table) -> None:
    """Have a run whose supervisor somebody kills."""
    table.run.shaken = True
    async with prompting(table, endless(table.rng)) as client:
        await table.started()
        attack(table, 0)
        await client.read()


@play(0.15)
async def killed_zygote(table: Table) -> None:
    """Have a zygote that somebody kills; runs go on."""
    table.run.shaken = True
    async with prompting(table, Script(directive("lines", n=100, rate=100), 100)) as client:
        await table.started()
        table.truth.shaken = time.monotonic()
        attack(table, 1)
        await read_to(client, 1000)


def attack(table: Table, which: int) -> None:
    """Kill the run's supervisor (0) or the zygote (1)."""
    with contextlib.suppress(OSError, IndexError):
        found = guardians(table.run.pid, table.house.process.pid)[which]
        with held([found]) as descriptors:
            send(descriptors, signal.SIGKILL)


# -- /ws/session ------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def beginning(table: Table, **options: object) -> AsyncIterator[Client]:
    """Connect and start a session."""
    async with connecting(table.port, "session", table.client()) as client:
        await client.op("start", meta=table.run.meta, **({"options": options} if options else {}))
        table.run.id = (await client.event("started"))["run"]
        yield client


@asynccontextmanager
async def coming_back(table: Table, seen: Seen, **more: object) -> AsyncIterator[Client]:
    """Attach, from the line on that the client has."""
    async with connecting(table.port, "session", seen) as client:
        after = seen.last
        await client.op("attach", run=table.run.id, after=after, **more)
        attached = await client.event("attached", "refused")
        expect(attached["event"] == "attached", attached)
        expect(attached["from"] == after + 1, f"asked for what is behind {after}, got {attached}")
        yield client


async def turn(client: Client, script: Script) -> None:
    """Say something and hear the whole turn."""
    client.seen.wanted = script.lines
    await client.user(script.text)
    await client.until(*RESULT)


async def end(client: Client) -> None:
    """End a session politely and hear so."""
    await client.op("stop", mode="end")
    await read_end(client, 1000, "exit", "stopped")


async def read_end(client: Client, code: int, *reasons: str) -> None:
    """Read to `ended`, for one of these reasons, and to the close, with this code."""
    await read_to(client, code)
    ended = client.seen.ended or {}
    expect(ended.get("reason") in reasons, f"{ended or client.seen.reason}, not {reasons}")


@play(10, "session")
async def talk(table: Table) -> None:
    """Have some turns, and end."""
    async with beginning(table, partial=table.rng.random() < 0.3) as client:
        for _ in range(table.rng.randint(1, 6)):
            await turn(client, good(table.rng))
            if table.rng.random() < 0.2:
                await set_model(client)
        await end(client)


async def set_model(client: Client) -> None:
    """Choose another model."""
    request = {"subtype": "set_model", "model": "sonnet"}
    await client.say({"type": "control_request", "request_id": "model", "request": request})
    said = await client.until(b'{"type":"control_response",')
    expect(said["response"]["subtype"] == "success", said)


@play(4, "session")
async def interrupt(table: Table) -> None:
    """Interrupt a turn, and have another."""
    async with beginning(table, partial=True) as client:
        await client.user(directive("slow", n=500, ms=20))
        await client.until(b'{"type":"stream_event",')
        await trio.sleep(table.rng.uniform(0, 0.2))
        await client.op("stop", mode="interrupt")
        await client.until(*RESULT)
        await turn(client, good(table.rng))
        await end(client)


@play(5, "session")
async def approval(table: Table) -> None:
    """Be asked; allow, deny, leave it open until it is denied, or leave."""
    async with beginning(table) as client:
        await client.user(directive("bash", cmd=DAEMONS))
        asked = await client.until(b'{"type":"control_request",')
        how = table.rng.choice(("allow", "deny", "late", "reset", "end"))
        if how in ("allow", "deny"):
            await answer(client, asked["request_id"], how)
            await client.until(*RESULT)
            await end(client)
        elif how == "late":
            await client.event("denied")
            await client.until(*RESULT)
            await end(client)
        elif how == "reset":
            client.reset()
        else:
            await client.op("stop", mode="kill")
            await read_end(client, 1000, "stopped")


async def answer(client: Client, request: str, behavior: str) -> None:
    """Answer a question of the CLI."""
    verdict = {"behavior": behavior, **({"message": "no"} if behavior == "deny" else {})}
    response = {"subtype": "success", "request_id": request, "response": verdict}
    await client.say({"type": "control_response", "response": response})


@play(7, "session")
async def grace(table: Table) -> None:
    """Lose the connection again and again, come back, and hear each line once."""
    script = Script(directive("lines", n=3000, rate=1500, size=table.rng.choice((0, 200))), 3000)
    async with beginning(table, on_disconnect={"grace": GRACE}) as client:
        seen = client.seen
        seen.wanted = script.lines
        await client.user(script.text)
        await drop(table, client)
    for _ in range(table.rng.randint(1, 5)):
        async with coming_back(table, seen) as client:
            await drop(table, client)
    async with coming_back(table, seen) as client:
        if not seen.results:
            await client.until(*RESULT)
        await turn(client, lines(table.rng))
        seen.partial = False
        await end(client)


async def drop(table: Table, client: Client) -> None:
    """Hear for a while, vanish, and stay away for a while."""
    with trio.move_on_after(table.rng.uniform(0, 0.6)):
        await client.read()
    if table.rng.random() < 0.2:
        with contextlib.suppress(Gone):
            await client.op("detach")
            await client.read()
    client.reset()
    await trio.sleep(table.rng.uniform(0, 0.4))


@play(2, "session")
async def takeover(table: Table) -> None:
    """Take a run over from its owner, in the middle of what it says."""
    count = 2000
    async with beginning(table, on_disconnect={"grace": GRACE}) as owner:
        await owner.user(directive("lines", n=count, rate=2000))
        with trio.move_on_after(table.rng.uniform(0, 0.8)):
            await owner.read()
        second = table.client(after=table.rng.randint(0, owner.seen.last))
        async with coming_back(table, second, **{"as": "owner"}) as client, trio.open_nursery() as nursery:
            owner.seen.partial = True
            nursery.start_soon(owner.read)
            await client.until(*RESULT)
            expect(second.last >= count, f"{second.last} lines of {count}")
            await end(client)
    expect(owner.seen.code == 1000, f"the owner before was closed with {owner.seen.code} ({owner.seen.reason})")


@play(4, "session")
async def viewers(table: Table) -> None:
    """Have others watch: from the start, from where the run is, slowly, or for a moment."""
    count = table.rng.randint(500, 4000)
    async with beginning(table) as client, trio.open_nursery() as nursery:
        for _ in range(table.rng.randint(1, 3)):
            nursery.start_soon(view, table, table.rng.uniform(0, 0.5), table.rng.random())
        await turn(client, Script(directive("lines", n=count, rate=2000, size=200), count))
        await turn(client, good(table.rng))
        await end(client)


async def view(table: Table, wait: float, manner: float) -> None:
    """Watch a run to its end, or leave before that."""
    await trio.sleep(wait)
    seen = table.client(owner=False)
    try:
        async with coming_back(table, seen, **{"as": "viewer"}) as client:
            if manner < 0.3:
                with trio.move_on_after(0.5):
                    await client.read()
                client.reset()
                return
            await client.read(slowly=0.02 if manner < 0.5 else 0)
    except Gone:
        if not table.fell and not table.run.over.is_set():
            raise


@play(2, "session")
async def detached(table: Table) -> None:
    """Leave a run to itself, and never come back."""
    async with beginning(table, on_disconnect={"grace": SHORT_GRACE}) as client:
        await client.user(endless(table.rng).text)
        with trio.move_on_after(table.rng.uniform(0, 0.5)):
            await client.read()
        if table.rng.random() < 0.5:
            client.seen.partial = True
            await client.op("detach")
            await read_to(client, 1000)
        else:
            client.reset()
        await table.over()
        table.reason("disconnected")


@play(4, "session")
async def vanish(table: Table) -> None:
    """Vanish from a session, at any moment."""
    async with connecting(table.port, "session", table.client()) as client:
        await client.op("start", meta=table.run.meta)
        if table.rng.random() < 0.7:
            await client.event("started")
            await client.user((endless if table.rng.random() < 0.6 else good)(table.rng).text)
        with trio.move_on_after(table.rng.uniform(0, 0.6)):
            await client.read()
        client.reset()


@play(4, "session")
async def kill(table: Table) -> None:
    """End a session now: read or unread, a flood or silence."""
    async with beginning(table) as client:
        flooded = table.rng.random() < 0.3
        await client.user(directive("lines", n=10**7, size=200) if flooded else endless(table.rng).text)
        await trio.sleep(table.rng.uniform(0, 0.5))
        await client.op("stop", mode="kill")
        await client.read()
        expect(client.seen.code in (1000, None), f"closed with {client.seen.code} ({client.seen.reason})")
        await table.over()
        table.reason("stopped")


@play(2, "session")
async def hurry(table: Table) -> None:
    """Say everything at once: start, prompt, and the end."""
    mode = table.rng.choice(("end", "kill", "interrupt"))
    async with connecting(table.port, "session", table.client()) as client:
        await client.op("start", meta=table.run.meta)
        await client.user(directive("lines", n=5))
        await client.op("stop", mode=mode)
        if mode == "interrupt":
            with contextlib.suppress(Gone):  # stopped while it waited for a slot: the close says so
                await client.event("started", "refused")
                await client.op("stop", mode="kill")
        await client.read()
        expect(client.seen.code == 1000, f"closed with {client.seen.code} ({client.seen.reason}) {client.seen.error}")


@play(2, "session")
async def bad_start(table: Table) -> None:
    """Begin a session with what is no beginning."""
    wrong = (
        {"type": "gateway", "op": "stop", "mode": "kill"},
        {"type": "gateway", "op": "start"},
        {"type": "gateway", "op": "attach", "run": "abc"},
        {"type": "user", "message": {"role": "user", "content": "x"}},
    )
    async with connecting(table.port, "session", Seen("session")) as client:
        await client.say(table.rng.choice(wrong))
        await client.event("refused")
        await read_to(client, 1008)


@play(2, "session")
async def refused_lines(table: Table) -> None:
    """Say what is not allowed between turns; the run goes on."""
    wrong = (
        {"type": "control_request", "request_id": "r", "request": {"subtype": "mcp_set_servers", "servers": {}}},
        {"type": "control_response", "response": {"subtype": "success", "request_id": "none", "response": {}}},
        {"type": "gateway", "op": "detach"},
        {"type": "nonsense"},
        "no JSON",
    )
    async with beginning(table) as client:
        for said in table.rng.sample(wrong, 3):
            await client.say(said)
            await client.event("refused")
        await turn(client, good(table.rng))
        await end(client)


@play(3, "session")
async def library(table: Table) -> None:
    """Use the client library over a network that breaks; hear each numbered line once."""
    async with open_cutter(table.port) as cutter, trio.open_nursery() as nursery:
        opened: list[Session] = []
        way: list[str] = []
        nursery.start_soon(break_network, table.rng, cutter.cut, lambda: sum(one.endswith("back") for one in way))
        try:
            await use_library(table, cutter.url, opened, way)
        except (ConnectFailed, ConnectionError) as error:  # before it has heard which run is its own it can't come back
            told = f"the library gave up: {error!r} {[one.ended for one in opened]} after {way[-WAY:]}"
            expect(table.fell or not opened, told)
        except Refused as error:
            expect(table.fell and error.code == Draining.code, repr(error))
        nursery.cancel_scope.cancel()


async def break_network(rng: Random, cut: Callable[[], None], returns: Callable[[], int]) -> None:
    """Cut each connection now and then, wherever the client is; each second time once it has returned."""
    while True:
        before = returns()
        for _ in range(2):
            await trio.sleep(rng.uniform(0.2, 0.8))
            cut()
        while returns() == before:
            await trio.sleep(LOOK_PAUSE)


async def use_library(table: Table, url: str, opened: list[Session], way: list[str]) -> None:
    """Have turns, each line of which must come once and in order; note when the connection was lost, and was back."""
    began = trio.current_time()

    async def decide(_approval: Approval) -> Allow | Deny:
        return table.rng.choice((Allow(), Deny()))

    def note(what: str) -> None:
        way.append(f"{trio.current_time() - began:.2f} {what}")

    reconnect = Reconnect(grace=LONG_GRACE, on_lost=lambda why: note(f"lost {why}"), on_back=lambda _: note("back"))
    async with open_session(meta=table.run.meta, url=url, on_approval=decide, reconnect=reconnect) as session:
        opened.append(session)
        for _ in range(table.rng.randint(1, 3)):
            count, last = table.rng.randint(1, 1500), 0
            async for line in session.ask(directive("lines", n=count, rate=1500)):
                if line.said.get("type") == "fake":
                    expect(line.said["n"] == last + 1, f"line {line.said['n']} came behind line {last}")
                    last += 1
                elif isinstance(line, Result):
                    expect(last == count, f"a turn of {count} lines ended at {last}")
        _ = [line async for line in session.ask(directive("bash", cmd=DAEMONS))]
        ended = await session.end()
        expect(ended.ok or table.fell, ended)  # the close behind it may be cut off


@play(3, "session")
async def retell(table: Table) -> None:
    """Come back to a run that has ended long since, by the socket or by a request."""
    if not table.truth.past:
        return
    told = table.rng.choice(list(table.truth.past))
    if table.rng.random() < 0.5:
        await read_history(table, told)
        return
    seen = Seen("session", owner=False)
    async with connecting(table.port, "session", seen) as client:
        await client.op("attach", run=told.id, after=0)
        await client.event("attached")
        await client.read()
    expect(seen.ended, f"{told.id} was not told to its end: {seen.reason} {seen.error}")
    same = (seen.last, seen.stretches[0].digest) == (told.lines, told.digest)
    expect(same, f"{told.id}: {seen.last} lines of {told.lines} were told again, or others")


async def read_history(table: Table, told: Told) -> None:
    """Read a run's lines, page by page, from somewhere on."""
    after = table.rng.randint(0, told.lines)
    part, number = "0", after
    while part:
        status, headers, body = await call(table.house, f"/api/runs/{told.id}/lines?after={after}&part={part}")
        expect(status == 200, f"{status}: {body[:200]!r}")
        for line in body.splitlines():
            one = json.loads(line)
            if "n" in one:
                expect(one["n"] == number + 1, f"{told.id}: line {one['n']} came behind line {number}")
                number += 1
        part = headers.get("x-next-part", "")
    expect(number == told.lines, f"{told.id}: {number} lines of {told.lines} were read")


# -- the real CLI -----------------------------------------------------------------------------------------------------

ANSWERS = (directive("text"), directive("slow", n=20, ms=20), directive("think"), directive("many", n=200))


@play(3, real=True)
async def real_prompt(table: Table) -> None:
    """Have a prompt answered by the real CLI; or vanish from it."""
    async with table.real, prompting(table, Script(table.rng.choice(ANSWERS)), model=REAL) as client:
        if table.rng.random() < 0.3:
            with trio.move_on_after(table.rng.uniform(0, 1.5)):
                await client.read()
            client.reset()
            return
        await read_to(client, 1000)
        expect(client.seen.results == 1, f"{client.seen.results} results")


@play(2, "session", real=True)
async def real_talk(table: Table) -> None:
    """Have turns with the real CLI, one of which leaves daemons behind."""
    async with table.real, beginning(table, model=REAL) as client:
        await turn(client, Script(table.rng.choice(ANSWERS)))
        await client.user(directive("bash", cmd=REAL_DAEMON))
        asked = await client.until(b'{"type":"control_request",')
        await answer(client, asked["request_id"], table.rng.choice(("allow", "deny")))
        await client.until(*RESULT)
        if table.rng.random() < 0.3:
            client.reset()
            return
        await end(client)


# -- beside -----------------------------------------------------------------------------------------------------------


async def visit(house: House, truth: Truth, rng: Random) -> None:
    """Make one HTTP request, and look whether it is answered rightly."""
    runs = [run.id for run in truth.runs.values() if run.id]
    some = rng.choice(runs) if runs else "00"
    path, statuses = rng.choice(
        (
            ("/healthz", (200,)), ("/readyz", (200,)), ("/notice", (200,)), ("/", (200,)), ("/openapi.json", (200,)),
            ("/api/runs?limit=50", (200,)), ("/api/runs?state=live", (200,)), ("/api/usage", (200,)),
            (f"/api/runs/{some}", (200, 404)), (f"/api/runs/{some}/lines", (200, 404)), ("/nowhere", (404,)),
            ("/api/runs?limit=0", (400,)), ("/api/runs/zz", (404,)),
        )
    )  # fmt: skip
    life = house.life
    try:
        with trio.fail_after(PLAY_BOUND):
            status, _, body = await call(house, path)
    except (OSError, trio.BrokenResourceError, trio.TooSlowError, ValueError, IndexError) as error:
        if not house.fell(life):
            truth.violate("answers", f"{path}: {error!r}")
        return
    if not house.fell(life):
        truth.check("answers", holds=status in statuses, seen=f"{path}: {status} {body[:100]!r}")
    if path.startswith("/api/runs?limit=50") and status == 200:
        check_list(truth, json.loads(body)["runs"])


def check_list(truth: Truth, rows: list[dict[str, Any]]) -> None:
    """Check that a list of runs is one: the newest first, each once."""
    order = [row["started"] for row in rows]
    once = len({row["id"] for row in rows}) == len(rows)
    truth.check("answers", holds=once and order == sorted(order, reverse=True), seen=f"/api/runs: {rows[:2]}")
