"""Rule: /openapi.json names every route there is and no other, and the server does what it says."""

from __future__ import annotations

import ast
import json
import os
import re
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import attrs
import httpx
import pytest
import schemathesis
import trio
from harness import Backend, ask, connect, directive, until
from jsonschema import Draft202012Validator
from talk import open_talk

import trio_claude
from trio_claude.api import OPEN_PATHS, PAGES, Api
from trio_claude.journal import Query
from trio_claude.openapi import REFUSALS, describe, schema_of
from trio_claude.server import Server

PACKAGE = Path(trio_claude.__file__).parent
DOCUMENT = describe({path: kind for path, (_, kind) in PAGES.items()}, OPEN_PATHS, asks=True)
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "TRACE", "OPTIONS")
TURNS = (
    ("--exclude-method=DELETE", "--phases=examples,coverage,fuzzing,stateful"),
    ("--include-method=DELETE", "--phases=examples,coverage,fuzzing"),
)


def code_routes() -> dict[str, set[str]]:
    """Return the methods by path, out of the tables that the server routes by."""
    nobody = cast("Any", None)
    routes = Api(nobody, nobody, nobody, nobody).routes
    return {path: {*methods, *({"HEAD"} if "GET" in methods else ())} for path, methods in routes.items()}


def document_routes() -> dict[str, set[str]]:
    return {path: {method.upper() for method in methods} for path, methods in DOCUMENT["paths"].items()}


def check_body(answer: httpx.Response, path: str, method: str = "get") -> Any:
    """Hold an answer against the document; return its body."""
    told = DOCUMENT["paths"][path][method]["responses"][str(answer.status_code)]
    if "$ref" in told:
        told = DOCUMENT["components"]["responses"][told["$ref"].rpartition("/")[2]]
    (kind, content), *more = told["content"].items()
    assert (kind, more) == (answer.headers["content-type"], [])
    body = answer.json() if kind == "application/json" else answer.text
    check_schema(content["schema"], body)
    return body


def check_schema(schema: Mapping[str, Any], value: object) -> None:
    Draft202012Validator({**schema, "components": DOCUMENT["components"]}).validate(value)


def client(server: Server, key: str | None = None) -> httpx.AsyncClient:
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    return httpx.AsyncClient(base_url=server.url, headers=headers, trust_env=False)


async def settled(server: Server) -> None:
    assert server.runs.journal
    assert await server.runs.journal.settle()


# -- the document ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("asks", [True, False])
def test_the_document_is_valid(asks: bool) -> None:
    document = describe({path: kind for path, (_, kind) in PAGES.items()}, OPEN_PATHS, asks=asks)
    schemathesis.openapi.from_dict(json.loads(json.dumps(document))).validate()
    for schema in document["components"]["schemas"].values():
        Draft202012Validator.check_schema(schema)
    operations = [operation for methods in document["paths"].values() for operation in methods.values()]
    for operation in operations:
        for parameter in operation["parameters"]:
            Draft202012Validator.check_schema(parameter["schema"])
        assert ("401" in operation["responses"]) == asks
        assert bool(operation["security"]) == asks
    assert len({operation["operationId"] for operation in operations}) == len(operations)


def test_the_code_and_the_document_have_the_same_routes() -> None:
    assert document_routes() == code_routes()


def test_no_path_is_served_beside_the_tables() -> None:
    paths = set()
    for module in ("api.py", "history.py"):
        for node in ast.walk(ast.parse((PACKAGE / module).read_text())):
            if (
                isinstance(node, ast.Constant)
                and isinstance(node.value, str)
                and re.fullmatch(r"/[\w./{}-]*", node.value)
            ):
                paths.add(node.value)
    assert paths == set(code_routes())


def test_each_status_of_a_refusal_is_in_the_document() -> None:
    raised = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "HttpRefusal":
                raised |= {node.args[0].value} if isinstance(node.args[0], ast.Constant) else set()
    assert raised == set(REFUSALS) - {501} | {405}  # 501 is h11's own


def test_only_what_is_open_takes_no_credential() -> None:
    for path, methods in DOCUMENT["paths"].items():
        for operation in methods.values():
            assert ({} in operation["security"]) == (path in OPEN_PATHS)


def test_a_class_becomes_its_schema() -> None:
    @attrs.frozen
    class Thing:
        name: str
        size: int | None
        tags: list[str]
        more: dict[str, float]

    assert schema_of(Thing) == {
        "type": "object",
        "properties": {
            "name": {"type": "string"},
            "size": {"anyOf": [{"type": "integer"}, {"type": "null"}]},
            "tags": {"type": "array", "items": {"type": "string"}},
            "more": {"type": "object", "additionalProperties": {"type": "number"}},
        },
        "required": ["name", "size", "tags", "more"],
        "additionalProperties": False,
    }


# -- the server --------------------------------------------------------------------------------------------------------


async def test_the_document_is_open_to_everybody(fake: Backend) -> None:
    async with fake.serve_known("alice", allow_origin=("https://app.example",)) as (server, _), client(server) as http:
        answer = await http.get("/openapi.json", headers={"Origin": "https://app.example"})
        assert (answer.status_code, answer.json()) == (200, DOCUMENT)
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["access-control-allow-origin"] == "https://app.example"
        assert (await http.get("/openapi.json", headers={"Origin": "https://evil.example"})).status_code == 403
    async with fake.serve() as server, client(server) as http:
        assert (await http.get("/openapi.json")).json()["paths"]["/api/runs"]["get"]["security"] == []


async def test_each_route_takes_the_methods_of_the_document(fake: Backend) -> None:
    async with (
        fake.serve_known("vera/viewer", journal="memory") as (server, keys),
        client(server, keys["vera"]) as http,
    ):
        for path, methods in document_routes().items():
            for method in METHODS:
                answer = await http.request(method, path.replace("{id}", "abc"))
                assert (answer.status_code == 405) == (method not in methods), (method, path)
                if answer.status_code == 405:
                    assert set(answer.headers["allow"].split(", ")) == methods


async def test_what_is_answered_of_runs_is_what_the_document_says(fake: Backend) -> None:
    async with fake.serve_known("ada/admin", journal="memory") as (server, keys), client(server, keys["ada"]) as http:
        key = keys["ada"]
        await ask(server, directive("stderr", text="oh", n=2), key=key, model="claude-haiku-5-5")
        await ask(server, directive("exit", code=3), key=key)
        async with open_talk(server, key) as talk:
            await talk.start()
            await talk.user("one")
            await talk.result()
            await talk.stop("end")
            await talk.event("ended")
        async with connect(server, key=key) as socket:
            await socket.send_message(json.dumps({"prompt": directive("silent"), "meta": "T"}))
            await until(lambda: server.runs.statistics().live == 1)
            await settled(server)
            runs = check_body(await http.get("/api/runs"), "/api/runs")["runs"]
            assert [run["state"] for run in runs] == ["live", "ended", "ended", "ended"]
            for run in runs:
                check_body(await http.get(f"/api/runs/{run['id']}"), "/api/runs/{id}")
                lines = check_body(await http.get(f"/api/runs/{run['id']}/lines"), "/api/runs/{id}/lines")
                for line in lines.splitlines():
                    check_schema({"$ref": "#/components/schemas/Line"}, json.loads(line))
            gone = [await http.delete(f"/api/runs/{run['id']}") for run in runs[:2]]
            assert [answer.status_code for answer in gone] == [202, 200]
            for answer in gone:
                check_body(answer, "/api/runs/{id}", "delete")
            await until(lambda: len(fake.ended) == 4)
        await settled(server)
        assert check_body(await http.get("/api/usage"), "/api/usage")["usage"]
        assert check_body(await http.delete("/api/runs"), "/api/runs", "delete") == {"deleted": 3}
        check_body(await http.post("/api/ticket"), "/api/ticket", "post")
        Path(fake.program).unlink()
        assert check_body(await http.get("/readyz"), "/readyz")["ready"] is False


async def test_a_scrape_is_of_a_type_that_the_document_has(fake: Backend) -> None:
    content = DOCUMENT["paths"]["/metrics"]["get"]["responses"]["200"]["content"]
    async with fake.serve(metrics=True) as server, client(server) as http:
        for kind in content:
            answer = await http.get("/metrics", headers={"Accept": kind})
            assert (answer.status_code, answer.headers["content-type"].partition(";")[0]) == (200, kind)


async def test_a_transfer_encoding_that_is_not_spoken_is_named(fake: Backend) -> None:
    async with fake.serve() as server, await trio.open_tcp_stream("127.0.0.1", server.port) as stream:
        await stream.send_all(b"POST /api/ticket HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: gzip\r\n\r\n")
        head, _, body = b"".join([chunk async for chunk in stream]).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 501 ")
        check_schema({"$ref": "#/components/schemas/Error"}, json.loads(body))


# -- whatever is asked -------------------------------------------------------------------------------------------------


async def attack(server: Server, folder: Path, key: str | None, rest: tuple[str, ...], long: bool) -> None:
    """Ask a server all that Schemathesis can think of, with all its checks, as one identity."""
    folder.mkdir()
    words = [
        sys.executable, "-m", "schemathesis.cli", "run", f"{server.url}/openapi.json", "--no-color", *rest,
        "--suppress-health-check=all", "--continue-on-failure", "--request-timeout=10",
        *(["--max-examples=300"] if long else ["--max-examples=10", "--generation-deterministic", "--exclude-method=HEAD"]),
        *([f"--header=Authorization: Bearer {key}"] if key else []),
    ]  # fmt: skip
    env = {"PATH": os.environ["PATH"], "HOME": str(folder), "NO_PROXY": "*"}
    told = await trio.run_process(words, cwd=folder, env=env, capture_stdout=True, capture_stderr=True, check=False)
    text = (told.stdout + told.stderr).decode()
    assert told.returncode == 0, text
    assert re.search(r"Fuzzing \(in .*passed", text, re.DOTALL), text


@pytest.mark.parametrize("asks", [True, False])
async def test_whatever_is_asked_is_answered_as_the_document_says(fake: Backend, long: bool, asks: bool) -> None:
    """What deletes comes last, so that there is something to be asked for. Long: more, at random, and each HEAD too."""
    names = ("alice", "vera/viewer", "ada/admin") if asks else ()
    serving = fake.serve_known(*names, journal="memory", metrics=True) if asks else open_to_all(fake)
    async with serving as (server, keys):
        for key in [keys["alice"], keys["ada"], keys["alice"]] if asks else [None]:
            await ask(server, directive("stderr", text="oh", n=2), key=key)
        await settled(server)
        for turn, rest in enumerate(TURNS):
            async with trio.open_nursery() as nursery:
                for name, key in (keys or {"local": None}).items():
                    nursery.start_soon(attack, server, fake.cwd.parent / f"{name}-{turn}", key, rest, long)
            await settled(server)
            assert server.runs.journal
            left = (await server.runs.journal.find(Query(identity=None))).runs
            assert bool(left) == (turn == 0)
        assert server.runs.statistics().live == 0
    assert not fake.left()


@asynccontextmanager
async def open_to_all(fake: Backend) -> AsyncIterator[tuple[Server, dict[str, str]]]:
    async with fake.serve(journal="memory", metrics=True) as server:
        yield server, {}
