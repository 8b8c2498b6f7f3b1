"""Rule: a scrape says what has happened, each metric of the reference and no other, to whom it may be told, and is bounded."""

from __future__ import annotations

import ast
import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, get_args

import attrs
import pytest
import trio
from harness import (
    Backend,
    Said,
    ask,
    call,
    connect,
    directive,
    get,
    head,
    listen,
    send_raw,
    until,
    zygotes,
)
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text
from talk import open_talk
from trio_websocket import ConnectionClosed

import trio_claude
from trio_claude import Config, Metrics, connection, events, open_engine, open_run, open_server
from trio_claude.errors import CloseCode, Reason
from trio_claude.events import Event, Outcome, Receipt
from trio_claude.journal import backlog
from trio_claude.metrics import FAMILIES, OTHER, PREFIX, SERIES_LIMIT
from trio_claude.metrics.families import BACKGROUND, HELPERS
from trio_claude.metrics.loop import HOLD, LoopWatch
from trio_claude.server import Server

PACKAGE = Path(trio_claude.__file__).parent
DOCS = Path(__file__).parents[1] / "docs"
ASKS = directive("bash", cmd="touch made-by-tool && echo made-by-tool")
ONLY_WITH_REDIS = {f"{PREFIX}_redis_connected"}
COLD = {"max_turns": 3}
"""With these a run gets no CLI that waits."""
Samples = dict[tuple[str, str], float]
"""Values by name and labels, these as `door=claude,warm=true`."""


def samples(text: str) -> Samples:
    found: Samples = {}
    for family in parse_text(text):
        for sample in family.samples:
            key = sample.name, ",".join(f"{name}={value}" for name, value in sorted(sample.labels.items()))
            assert key not in found, key
            found[key] = sample.value
    return found


def of(metrics: Metrics) -> Samples:
    return samples(metrics.render()[0].decode())


async def scrape(server: Server, key: str | None = None) -> Samples:
    status, headers, body = await call(server, "/metrics", key)
    assert (status, headers["content-type"]) == (200, "text/plain; version=0.0.4; charset=utf-8")
    assert headers["cache-control"] == "no-store"
    return samples(body.decode())


def named(found: Samples, name: str) -> dict[str, float]:
    """Return the series of one metric that are not 0, by their labels."""
    return {labels: value for (one, labels), value in found.items() if one == f"{PREFIX}_{name}" and value}


@pytest.fixture
def page(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The kind of each metric of the reference, by its name."""
    monkeypatch.syspath_prepend(str(DOCS / "_ext"))
    import from_code

    rows = [line.split("|") for line in from_code.families() if line.startswith("| `")]
    return {row[1].strip(" `"): row[2].strip() for row in rows}


# -- a tour ------------------------------------------------------------------------------------------------------------


class Tour:
    """Does to a server what there is to count, and notes what clients saw of it."""

    def __init__(self, cli: Backend, server: Server) -> None:
        self.cli = cli
        self.server = server
        self.codes: dict[str, int] = {}
        self.scrapes = 0

    async def scrape(self) -> Samples:
        self.scrapes += 1
        return await scrape(self.server)

    def saw(self, code: int | str) -> None:
        self.codes[f"code={code}"] = self.codes.get(f"code={code}", 0) + 1

    async def ask(self, prompt: str, **options: object) -> Said:
        said = await ask(self.server, prompt, **options)
        self.saw(said.code)
        return said

    async def over(self, runs: int) -> None:
        """Wait for the ends of so many runs."""
        await until(lambda: len(self.cli.ended) == runs, 10)

    async def one_prompt(self) -> None:
        await self.ask("hello", **COLD)
        await self.ask(directive("exit", status=3), **COLD)
        await self.ask(directive("err", status=401), **COLD)
        async with connect(self.server) as socket:
            await socket.send_message(json.dumps({"prompt": directive("silent"), "meta": "T", **COLD}))
            await until(lambda: self.server.runs.statistics().live == 1)
            (run,) = self.server.runs._live
            status, _, _ = await call(self.server, f"/api/runs/{run}", method="DELETE")
            assert status == 202
            with pytest.raises(ConnectionClosed):
                while True:
                    await socket.get_message()
            self.saw(socket.closed.code)
        async with connect(self.server) as socket:
            await socket.send_message(json.dumps({"prompt": directive("silent"), "meta": "T", **COLD}))
            await until(lambda: self.server.runs.statistics().live == 1)
        self.saw(1000)  # what a client says that leaves
        await self.over(5)

    async def sessions(self) -> None:
        async with open_talk(self.server) as talk:
            await talk.start()
            await talk.user("hello")
            await talk.result()
            for answer in ({"behavior": "allow"}, {"behavior": "deny", "message": "no"}, None):
                await talk.user(ASKS)
                question = await talk.asked()
                if answer:
                    await talk.answer(question["request_id"], **answer)
                await talk.result()
            await talk.user(ASKS)
            await talk.asked()
            await talk.stop("interrupt")
            await talk.result()
            await talk.user(directive("slow", n=200, ms=20))
            await talk.next(lambda frame: frame.get("subtype") == "init")
            await talk.stop("interrupt")
            await talk.result()
            await talk.user("hello")
            await talk.result()
            await talk.stop("end")
            await talk.end()
            self.saw(talk.code or 0)
        async with open_talk(self.server) as talk:
            await talk.start()
            await talk.user(ASKS)
            await talk.asked()
        self.saw(1000)
        await self.over(7)

    async def refusals(self) -> None:
        for sent, status in (
            (head(origin="http://evil.example"), 403),
            (head("/ws/other"), 404),
            (b"GET /ws/claude HTTP/1.1\r\nHost: localhost\r\n\r\n", 426),
            (b"PATCH /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n", 405),
            (b"\0\r\n\r\n", 400),
        ):
            async with await trio.open_tcp_stream("127.0.0.1", self.server.port) as stream:
                await stream.send_all(sent)
                answer = b"".join([chunk async for chunk in stream])
            assert answer.startswith(b"HTTP/1.1 %d " % status)
        self.saw((await send_raw(self.server, "no json")).code)

    async def queue(self) -> None:
        """Fill all slots; one waits, the next is too many; one is let go, so that it comes in."""
        await until(lambda: self.server.runs.pool.ready == 1, 20)
        async with trio.open_nursery() as nursery:
            ends = []
            for live in (1, 2, 3):  # the third one waits until the CLI that waited ready has left its slot
                ends.append(await nursery.start(self.hold))
                await until(lambda live=live: self.server.runs.statistics().live == live)
            waiting = await nursery.start(self.hold)
            await until(lambda: self.server.runs.statistics().waiting == 1)
            self.saw((await ask(self.server, "hello", **COLD)).code)
            full = await self.scrape()
            assert [full[f"{PREFIX}_{name}", ""] for name in ("runs_live", "runs_waiting", "slots", "slots_taken")] == [
                3,
                1,
                3,
                3,
            ]
            assert full[f"{PREFIX}_connections_open", "path=/ws/claude"] == 4
            ends.pop().set()
            await until(lambda: self.server.runs.statistics().waiting == 0)
            await until(lambda: self.server.runs.statistics().live == 3)
            for leave in (*ends, waiting):
                leave.set()
        await self.over(11)

    def asking(self) -> int:
        """Return how many runs live or wait."""
        now = self.server.runs.statistics()
        return now.live + now.waiting

    async def hold(self, task_status: trio.TaskStatus[trio.Event]) -> None:
        """Have a run that says nothing, until told to leave."""
        leave = trio.Event()
        async with connect(self.server) as socket:
            before = self.asking()
            await socket.send_message(json.dumps({"prompt": directive("silent"), "meta": "T", **COLD}))
            await until(lambda: self.asking() != before)
            task_status.started(leave)
            await leave.wait()
        self.saw(1000)

    async def stalled(self) -> None:
        """Take nothing for a while of what a run says."""
        async with await trio.open_tcp_stream("127.0.0.1", self.server.port) as stream:
            await stream.send_all(head())
            prompt = json.dumps({"prompt": directive("lines", n=100_000, size=300), "meta": "T", **COLD}).encode()
            assert len(prompt) < 126
            await stream.send_all(bytes((0x81, 0x80 | len(prompt), 0, 0, 0, 0)) + prompt)
            await until(lambda: any(run._delivery.open for run in self.server.runs._live.values()))
            await trio.sleep(events.STALL + 0.6)
            last = b""
            while b"exit 0; " not in last:
                last = last[-100:] + bytes(await stream.receive_some(1 << 20))
            await stream.send_all(bytes((0x88, 0x80, 0, 0, 0, 0)))
        self.saw(1000)
        await self.over(12)

    async def faults(self) -> None:
        """A crash, a lost zygote, settings good and bad, a held loop, a journal that fails and one that is full."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(connection, "_door", lambda *_: 1 / 0)
            async with await trio.open_tcp_stream("127.0.0.1", self.server.port) as stream:
                await stream.send_all(head())
                assert b"101" in b"".join([chunk async for chunk in stream])
        self.saw("none")
        config = self.server._entrance.config
        self.server.reload(lambda: config)
        self.server.reload(lambda: attrs.evolve(config, metrics=False))
        time.sleep(0.03)  # noqa: ASYNC251 - this is what is measured
        journal = self.server.runs.journal
        assert journal
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(journal._store, "transaction", _locked)
            assert not await journal.settle(0.1)
            assert (await self.scrape())[f"{PREFIX}_journal_lag_seconds", ""] >= 0.1
        assert await journal.settle()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(backlog, "QUEUE_BYTES", 0)
            await self.ask("hello", **COLD)
        (zygote,) = zygotes()
        os.kill(zygote, signal.SIGKILL)
        await until(lambda: events.GuardianLost("zygote") in self.cli.events)

    def heard(self, kind: type[Event]) -> int:
        return sum(isinstance(event, kind) for event in self.cli.events)

    def strains(self) -> list[bool]:
        return [event.over for event in self.cli.events if isinstance(event, events.Strained)]

    async def pool(self) -> None:
        """A run gets the CLI that waits; then none can be started any more."""
        await until(lambda: self.server.runs.pool.ready == 1, 20)
        ready = await self.scrape()
        assert (ready[f"{PREFIX}_pool_ready", ""], ready[f"{PREFIX}_pool_size", ""]) == (1, 1)
        Path(self.cli.program).unlink()
        await self.ask("hello")
        await until(lambda: self.strains()[-1:] == [False], 20)
        await self.ask("hello", **COLD)
        await self.over(15)


@contextmanager
def _locked() -> Iterator[None]:
    raise sqlite3.OperationalError("database is locked")
    yield


@pytest.mark.namespace
async def test_a_tour_is_told_whole(fake: Backend, page: dict[str, str]) -> None:
    config: dict[str, Any] = {"max_runs": 3, "max_waiting": 1, "approval_timeout": 2.0, "containment": "namespace"}
    async with fake.serve(metrics=True, journal="memory", pool_size=1, **config) as server:
        tour = Tour(fake, server)
        for step in (tour.one_prompt, tour.sessions, tour.refusals, tour.queue, tour.stalled, tour.faults, tour.pool):
            with trio.fail_after(30):
                await step()
        assert server.runs.journal
        await server.runs.journal.settle()
        runs = (await get(server, "/api/runs?limit=500"))["runs"]
        used = (await get(server, "/api/usage"))["usage"]
        await until(lambda: tour.heard(events.ConnectionOpened) == tour.heard(events.ConnectionClosed))
        found = await tour.scrape()
        assert {family(name, page) for name, _ in found} == set(page) - ONLY_WITH_REDIS
    check_connections(found, tour)
    check_runs(found, fake, runs, used)
    check_containment(found, runs)
    check_server(found)


def family(name: str, kinds: dict[str, str]) -> str:
    """Return the metric to which a sample belongs."""
    whole = re.sub("_(bucket|sum|count)$", "", name)
    return whole if kinds.get(whole) in ("histogram", "summary") else name


def check_connections(found: Samples, tour: Tour) -> None:
    assert named(found, "connections_open") == {}
    assert named(found, "connections_closed_total") == tour.codes
    assert named(found, "connection_seconds_count") == {"": sum(tour.codes.values())}
    assert named(found, "refused_total") == {
        "code=origin,status=403": 1, "code=not-found,status=404": 1, "code=upgrade,status=426": 1,
        "code=method,status=405": 1, "code=bad-request,status=400": 1, "code=bad-message,status=1008": 1,
        "code=queue-full,status=1013": 1,
    }  # fmt: skip
    answers = {"status=202": 1, "status=403": 1, "status=404": 1, "status=405": 1, "status=426": 1}
    answers["status=200"] = tour.scrapes - 1 + 2  # all before this one; runs and usage
    assert named(found, "http_answers_total") == answers
    assert named(found, "http_answer_seconds_count") == {"": sum(answers.values())}


def check_runs(found: Samples, fake: Backend, runs: list[dict[str, Any]], used: list[dict[str, Any]]) -> None:
    assert named(found, "runs_ended_total") == {
        "door=claude,reason=exit": 4, "door=claude,reason=failed": 1, "door=claude,reason=unauthorized": 1,
        "door=claude,reason=stopped": 1, "door=claude,reason=disconnected": 5, "door=claude,reason=spawn-failed": 1,
        "door=session,reason=exit": 1, "door=session,reason=disconnected": 1,
    }  # fmt: skip
    assert named(found, "runs_started_total") == {
        "door=claude,warm=false": 11, "door=claude,warm=true": 1, "door=session,warm=false": 2,
    }  # fmt: skip
    assert named(found, "run_seconds_count") == {"door=claude": 13, "door=session": 2}
    assert named(found, "slot_wait_seconds_count") == {"": 14}
    waited = [event.waited for event in fake.events if isinstance(event, events.RunStarted)]
    assert 0 < named(found, "slot_wait_seconds_sum")[""] == pytest.approx(sum(waited))
    assert named(found, "first_line_seconds_count") == {"door=claude": 6, "door=session": 2}
    assert 0 < named(found, "first_line_seconds_sum")["door=claude"] < 6 * 10
    turns = {"door=claude,outcome=good": 4, "door=session,outcome=good": 5, "door=session,outcome=bad": 2}
    assert named(found, "turns_total") == turns
    assert named(found, "first_token_seconds_count") == {"door=claude": 3, "door=session": 8}
    assert 0 < named(found, "first_token_seconds_sum")["door=session"] < 8 * 10
    assert named(found, "turn_seconds_count") == {"door=claude": 4, "door=session": 7}
    assert 1 < named(found, "turn_seconds_sum")["door=session"] < 60
    outcomes = ("allowed", "denied", "expired", "withdrawn", "abandoned")
    assert named(found, "approval_seconds_count") == {f"outcome={one}": 1 for one in outcomes}
    assert 2 <= named(found, "approval_seconds_sum")["outcome=expired"] < 10
    assert named(found, "interrupts_total") == {"": 2}
    assert named(found, "send_stall_seconds_count") == {"": 1}
    assert events.STALL < named(found, "send_stall_seconds_sum")[""] < 20
    assert named(found, "lines_total") == {"": sum(run["lines"] for run in runs)}
    assert 100_000 * 300 < named(found, "stdout_bytes_total")[""] == sum(event.bytes for event in fake.ended)
    assert named(found, "tokens_total") == {"": sum(row["tokens"] for row in used)}
    assert named(found, "dollars_total")[""] == pytest.approx(sum(row["dollars"] for row in used))
    assert named(found, "runs_live") == named(found, "runs_waiting") == named(found, "slots_taken") == {}


def check_containment(found: Samples, runs: list[dict[str, Any]]) -> None:
    receipts = [run["receipt"] for run in runs]
    assert len(receipts) == 15
    assert named(found, "processes_seen_total") == {"": sum(one["seen"] for one in receipts)}
    assert named(found, "processes_killed_total") == {"": sum(one["killed"] for one in receipts)}
    assert named(found, "processes_survived_total") == named(found, "receipts_unproven_total") == {}
    assert ("trio_claude_receipts_unproven_total", "containment=namespace") in found
    assert named(found, "kill_seconds_count") == {"": sum(bool(one["seen"]) for one in receipts)}
    assert named(found, "kill_seconds_sum")[""] == pytest.approx(
        sum(one["ms"] for one in receipts if one["seen"]) / 1000
    )
    assert named(found, "guardians_lost_total") == {"what=zygote": 1}


def check_server(found: Samples) -> None:
    assert named(found, "crashes_total") == {"where=connection": 1}
    assert named(found, "strained") == {"what=what CLIs started ahead of need take": 1}
    assert named(found, "reloads_total") == {"outcome=good": 1, "outcome=bad": 1}
    assert named(found, "loop_hold_seconds_count")[""] >= 1
    assert named(found, "loop_hold_seconds_sum")[""] >= 0.03
    assert named(found, "loop_busy_seconds_total")[""] >= named(found, "loop_hold_seconds_sum")[""]
    assert named(found, "journal_faults_total")[""] >= 1
    assert named(found, "journal_given_up_total") == {"": 1}
    assert named(found, "journal_lag_seconds") == named(found, "journal_waiting_bytes") == {}
    assert named(found, "pool_ready") == {}
    assert named(found, "pool_size") == {"": 1}
    assert named(found, "build_info") == {f"containment=namespace,version={trio_claude.__version__}": 1}
    assert found["process_resident_memory_bytes", ""] > 10_000_000
    assert 0 < found["process_open_fds", ""] < found["process_max_fds", ""]


async def test_what_a_drain_ends_is_told(fake: Backend) -> None:
    metrics = Metrics()
    config = Config(port=0, cli=fake.program, cwd=str(fake.cwd), containment="supervisor")
    async with open_server(config, [metrics], environ=fake.environ) as server, connect(server) as socket:
        await socket.send_message(json.dumps({"prompt": directive("silent"), "meta": "T"}))
        await until(lambda: server.runs.statistics().live == 1)
        assert named(of(metrics), "connections_open") == {"path=/ws/claude": 1}
        await server.drain(0)
        await listen(socket)
        await until(lambda: not named(of(metrics), "connections_open"))
    found = of(metrics)
    assert named(found, "runs_ended_total") == {"door=claude,reason=drained": 1}
    assert named(found, "connections_closed_total") == {f"code={CloseCode.RESTARTING:d}": 1}


# -- who may read, and how ---------------------------------------------------------------------------------------------


async def test_who_may_read(fake: Backend) -> None:
    async with fake.serve_known("alice", "vera/viewer", "ada/admin", metrics=True) as (server, keys):
        statuses = {name: (await call(server, "/metrics", key))[0] for name, key in {**keys, "nobody": None}.items()}
        assert statuses == {"alice": 403, "vera": 200, "ada": 200, "nobody": 401}
        assert json.loads((await call(server, "/metrics", keys["alice"]))[2])["code"] == "role"
    async with fake.serve(metrics=True) as server:
        await scrape(server)
        assert (await call(server, "/metrics", method="HEAD"))[2] == b""
        assert (await call(server, "/metrics", method="POST"))[0] == 405


async def test_off_says_how_to_turn_it_on(fake: Backend) -> None:
    async with fake.serve() as server:
        status, _, body = await call(server, "/metrics")
    assert (status, json.loads(body)) == (
        404, {"code": "no-metrics", "error": "this server keeps no metrics; the operator can say --metrics"},
    )  # fmt: skip


@pytest.mark.parametrize(
    ("accept", "is_open"),
    [
        ("", False), ("*/*", False), ("text/plain;version=0.0.4", False), ("text/html, application/xml;q=0.9", False),
        ("application/openmetrics-text", True),
        ("application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5,*/*;q=0.1", True),
        ("application/openmetrics-text; version=none; escaping=none", True), (";,;=", False),
    ],
)  # fmt: skip
def test_the_format_is_the_one_that_is_asked_for(accept: str, is_open: bool) -> None:
    metrics = Metrics()
    metrics(events.ContainmentReady("supervisor", ""))
    body, content_type = metrics.render(accept)
    assert content_type.partition(";")[0] == ("application/openmetrics-text" if is_open else "text/plain")
    parse = parse_openmetrics if is_open else parse_text
    families = {family.name for family in parse(body.decode())}
    assert f"{PREFIX}_build_info" in families
    assert body.endswith(b"# EOF\n") == is_open
    assert b"_created" not in body


@pytest.mark.promtool
async def test_promtool_finds_nothing(fake: Backend) -> None:
    metrics = Metrics()
    for event in every_event(1):
        metrics(event)
    async with fake.serve(metrics=True, journal="memory") as server:
        await ask(server, "hello")
        _, _, body = await call(server, "/metrics")
    for text in (body, metrics.render()[0]):
        told = await trio.run_process(
            ["promtool", "check", "metrics"], stdin=text, capture_stdout=True, capture_stderr=True, check=False
        )
        assert (told.returncode, told.stdout, told.stderr) == (0, b"", b"")


# -- bounds ------------------------------------------------------------------------------------------------------------

RECEIPT = Receipt(seen=3, killed=2, survivors=0, ms=12.5, containment="namespace")
OUTCOME = Outcome(Reason.EXIT, 0, None, 3, 0, RECEIPT)


def every_event(number: int) -> Iterator[Event]:
    """Yield one event of each class, each word of which that may differ does."""
    word, door = f"CANARY-{number}", ("claude", "session")[number % 2]
    given = {
        "run": word, "meta": word, "identity": word, "peer": word, "path": f"/{word}", "text": word, "detail": word,
        "url": word, "method": word, "error": word, "reason": word, "pid": number, "mode": "namespace", "door": door,
        "seconds": number / 7, "tokens": 1, "dollars": 0.5, "size": 1, "turn": number, "over": True, "outcome": "allowed",
        "status": 400 + number % 30, "code": f"code-{number % 30}", "what": "descriptors", "where": "pool",
        "node": word, "state": "lost",
    }  # fmt: skip
    for kind in get_args(Event):
        fields = {
            one.name: given[one.name] for one in attrs.fields(kind) if one.default is attrs.NOTHING or one.name in given
        }
        match kind:
            case events.RunEnded:
                fields["outcome"] = OUTCOME
            case events.ConnectionOpened:
                fields["path"] = "/ws/claude"
            case events.ConnectionClosed:
                fields |= {"code": 3000 + number, "path": "/ws/claude"}
            case events.Crashed:
                fields["error"] = ValueError(word)
        yield kind(**fields)


def test_the_series_are_bounded_and_hold_no_word_of_anybody() -> None:
    metrics, sizes = Metrics(), []
    for number in range(10_000):
        for event in every_event(number):
            metrics(event)
        if number in (99, 9_999):
            sizes.append(len(of(metrics)))
    assert sizes[0] == sizes[1] < 700
    assert b"CANARY" not in metrics.render()[0]
    assert named(of(metrics), "connections_closed_total") == {f"code={OTHER}": 10_000}
    assert named(of(metrics), "runs_ended_total") == {f"door={one},reason=exit": 5_000 for one in ("claude", "session")}


def test_a_word_too_many_is_another() -> None:
    metrics = Metrics()
    for number in range(3 * SERIES_LIMIT):
        metrics(events.Answered("peer", "GET", "/", number, 0.1))
    answers = named(of(metrics), "http_answers_total")
    assert len(answers) == SERIES_LIMIT + 1
    assert answers[f"status={OTHER}"] == 2 * SERIES_LIMIT


def test_the_code_has_fewer_refusals_than_the_limit() -> None:
    """Statuses with each word that is written in the code; a word of a message closes with one of two codes."""
    words = set()
    for node in _nodes():
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("HttpRefusal", "Refused"):
            words |= {str(one.value) for one in node.args if isinstance(one, ast.Constant)}
        if isinstance(node, ast.AnnAssign) and getattr(node.target, "id", "") == "code":
            words |= {str(node.value.value)} if isinstance(node.value, ast.Constant) else set()
    assert 20 < sum(bool(re.fullmatch("[a-z-]+", word)) for word in words) < SERIES_LIMIT / 2


def test_what_may_crash_or_be_lost_is_there_from_the_start() -> None:
    """The first rise of a counter is a rise only where it has been 0 before."""
    where, lost = set(), set()
    for node in _nodes():
        if isinstance(node, ast.Call) and node.args:
            name, first = getattr(node.func, "id", ""), node.args[0]
            if name == "Crashed" or any(getattr(one, "id", "") == "keep_going" for one in (node.func, *node.args)):
                words = [one.value for one in node.args if isinstance(one, ast.Constant)]
                where |= set(words[:1])
            if name == "GuardianLost" and isinstance(first, ast.Constant):
                lost.add(first.value)
    assert where == set(BACKGROUND)
    assert lost == set(HELPERS)


def _nodes() -> Iterator[ast.AST]:
    for path in PACKAGE.rglob("*.py"):
        if "testing" not in path.parts:
            yield from ast.walk(ast.parse(path.read_text()))


def test_survivors_are_told() -> None:
    metrics = Metrics()
    metrics(events.RunEnded("r", "m", 1.0, attrs.evolve(OUTCOME, receipt=attrs.evolve(RECEIPT, survivors=2))))
    metrics(events.RunEnded("r", "m", 1.0, attrs.evolve(OUTCOME, receipt=attrs.evolve(RECEIPT, survivors=None))))
    found = of(metrics)
    assert named(found, "processes_survived_total") == {"": 2}
    assert named(found, "receipts_unproven_total") == {"containment=namespace": 1}


# -- whose they are ----------------------------------------------------------------------------------------------------


@asynccontextmanager
async def two_servers(fake: Backend) -> AsyncIterator[list[Server]]:
    async with fake.serve(metrics=True) as one, fake.serve(metrics=True) as other:
        yield [one, other]


async def test_servers_of_one_process_share_nothing(fake: Backend) -> None:
    async with two_servers(fake) as servers:
        for server, count in zip(servers, (1, 2), strict=True):
            for _ in range(count):
                await ask(server, "hello")
        ended = [named(await scrape(server), "runs_ended_total") for server in servers]
    assert ended == [{"door=claude,reason=exit": 1}, {"door=claude,reason=exit": 2}]


async def test_an_engine_is_counted_too(fake: Backend) -> None:
    metrics = Metrics()
    config = Config(cli=fake.program, cwd=str(fake.cwd))
    async with open_engine(config, [metrics], environ=fake.environ) as engine:
        with metrics.watching(engine.runs):
            async with open_run("hello", engine=engine) as run:
                await run.wait()
            found = of(metrics)
            with pytest.raises(RuntimeError, match="watch already"), metrics.watching(engine.runs):
                pass
        assert (f"{PREFIX}_slots", "") not in of(metrics)
        with metrics.watching(engine.runs):
            assert of(metrics)[f"{PREFIX}_slots", ""] > 0
    assert run.outcome
    assert named(found, "lines_total") == {"": run.outcome.lines}
    assert not {name for name, _ in found if "journal" in name}, "there is none"


def test_who_wants_none_imports_none() -> None:
    code = """
import sys, trio, trio_claude
async def main():
    async with trio_claude.open_server(trio_claude.Config(port=0, cli="/bin/true")): pass
trio.run(main)
print(*(name for name in sys.modules if "prometheus" in name or name.startswith("trio_claude.metrics")))
"""
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == ""


# -- the loop ----------------------------------------------------------------------------------------------------------


async def test_a_held_loop_is_told_and_a_waiting_one_is_not() -> None:
    held: list[float] = []
    loop = LoopWatch(held.append)
    trio.lowlevel.add_instrument(loop)
    try:
        await trio.sleep(0.1)
        assert loop.busy < 0.1
        time.sleep(2 * HOLD)  # noqa: ASYNC251 - this is what is measured
        await trio.lowlevel.checkpoint()
    finally:
        trio.lowlevel.remove_instrument(loop)
    assert 2 * HOLD <= max(held) <= loop.busy


def test_families_are_well_named() -> None:
    for one in FAMILIES:
        assert re.fullmatch(r"[a-z]+(_[a-z]+)*", one.name)
        assert one.name.endswith("_total") == (one.kind == "counter"), one.name
        assert one.text.endswith(".")
        assert bool(one.buckets) == (one.kind == "histogram")
        assert list(one.buckets) == sorted(set(one.buckets))
        assert all(len(labels) == len(one.labels) for labels in one.known)
