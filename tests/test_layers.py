"""The import table: a room imports only the rooms that its row names, and each row names rows above it only."""

from __future__ import annotations

import ast
import statistics
from collections.abc import Iterator
from pathlib import Path

import pytest

import trio_claude

PACKAGE = Path(trio_claude.__file__).parent
TABLE: dict[str, set[str]] = {
    # words
    "errors": set(),
    "faults": set(),
    "context": set(),
    "events": {"errors", "faults"},
    "figures": set(),
    "memory": set(),
    "config": {"errors", "figures", "memory"},
    "checks": {"errors", "figures"},
    "messages": {"errors", "events", "checks"},
    # rules: no await, no trio, no clock
    "admission": {"errors", "config", "figures"},
    "stream_json": {"messages", "figures"},
    "session": {"errors", "messages", "stream_json"},
    "metering": {"stream_json"},
    "endings": {"errors"},
    # hands: each owns exactly one outside thing
    "services": {"events"},
    "threads": set(),
    "turns": set(),
    "delivery": set(),
    "places": set(),
    "listeners": set(),
    "inbox": {"errors"},
    "containment": {"errors", "events", "services", "threads", "turns"},
    "stderr": {"delivery", "turns", "containment"},
    "quarters": {"errors"},
    "cli_state": {"quarters"},
    "holds": {"errors"},
    "leftovers": {"errors", "threads", "containment"},
    "transcripts": {"quarters", "leftovers"},
    "journal": {"errors", "threads"},
    "identity": {"errors", "config"},
    "queries": {"errors"},
    "upgrade": {"errors", "config", "identity"},
    "nodes": {"errors", "events", "config", "services", "threads", "admission", "journal", "identity", "figures"},
    "peer": {"errors", "config", "messages", "services", "turns", "upgrade"},
    "logs": {"events", "config", "context", "faults"},
    # wiring
    "workplace": {"errors", "config", "messages", "stream_json", "threads", "containment", "quarters", "cli_state", "holds", "transcripts", "leftovers"},
    "pool": {"errors", "events", "messages", "stream_json", "containment", "workplace"},
    "telling": {"events", "stream_json", "session"},
    "tracing": {"errors", "events", "stream_json", "telling", "__init__"},
    "kit": {"events", "stream_json", "turns", "containment", "journal", "workplace", "telling"},
    "accounts": {"messages", "stream_json", "admission", "journal", "nodes", "kit"},
    "run": {
        "context", "delivery", "endings", "errors", "events", "faults", "messages", "stream_json", "session", "metering", "telling", "turns", "containment", "stderr",
        "journal", "workplace", "pool", "kit",
    },
    "session_run": {
        "endings", "errors", "events", "config", "messages", "stream_json", "session", "metering", "turns", "containment", "journal", "workplace", "kit", "run",
    },
    "runs": {
        "errors", "events", "config", "messages", "admission", "session", "threads", "turns", "containment", "journal", "nodes", "workplace", "pool",
        "kit", "accounts", "run", "session_run", "telling",
    },
    "engine": {
        "errors", "events", "config", "services", "threads", "containment", "quarters", "journal", "nodes", "workplace", "runs", "telling",
        "tracing",
    },
    "metrics": {"errors", "events", "journal", "run", "session_run", "runs", "__init__"},
    "entrance": {"errors", "events", "config", "admission", "identity", "nodes", "upgrade"},
    "history": {"errors", "threads", "identity", "queries", "upgrade", "journal", "runs"},
    "openapi": {"errors", "events", "identity", "queries", "upgrade", "journal", "history", "__init__"},
    "past": {"errors", "events", "messages", "turns", "journal", "peer"},
    "link": {"nodes"},
    "far": {"errors", "messages", "services", "session", "journal", "nodes", "peer", "entrance", "past", "link"},
    "stage": {"errors", "messages", "inbox", "journal", "peer", "kit", "session_run", "past"},
    "room": {"events", "config", "messages", "runs", "stage", "far"},
    "conversation": {
        "errors", "events", "messages", "services", "inbox", "session", "peer", "session_run", "entrance", "past", "journal", "stage", "far", "room",
    },
    "guests": {
        "room", "context", "errors", "events", "faults", "config", "messages", "identity", "nodes", "peer", "entrance", "link",
        "stage", "conversation",
    },
    "connection": {
        "room", "context", "errors", "events", "faults", "config", "messages", "places", "peer", "upgrade", "kit", "run", "runs", "entrance", "far", "stage", "conversation",
    },
    "sayings": {
        "room", "errors", "events", "config", "messages", "session", "queries", "journal", "history", "openapi", "conversation",
    },
    "asyncapi": {
        "errors", "events", "config", "messages", "session", "entrance", "openapi", "connection", "sayings", "__init__",
    },
    "api": {
        "errors", "threads", "containment", "identity", "upgrade", "workplace", "runs", "entrance", "history", "openapi", "asyncapi",
    },
    "server": {
        "room", "errors", "events", "config", "admission", "places", "peer", "runs", "services", "engine", "metrics", "entrance", "api", "stage",
        "conversation", "connection", "far", "guests", "telling", "listeners", "__init__",
    },
    # faces
    "embed": {"errors", "events", "config", "messages", "services", "run", "engine"},
    "client": {"errors", "figures"},
    "sdk": {"client"},
    "batch": {
        "errors", "figures", "events", "config", "messages", "stream_json", "metering", "threads", "containment", "engine", "embed",
        "client", "__init__",
    },
    "testing": set(),
    "commands": {
        "errors", "figures", "events", "config", "messages", "containment", "logs", "identity", "quarters", "leftovers", "journal", "entrance", "workplace", "engine", "embed", "server", "client",
        "batch", "testing", "services", "listeners", "__init__",
    },
    "__main__": {"commands"},
    "__init__": {"errors", "events", "config", "engine", "metrics", "server", "embed", "client"},
}  # fmt: skip
ASYNC_FREE = (
    "errors", "faults", "context", "events", "figures", "config", "messages", "stream_json", "metering", "endings", "queries", "openapi", "checks", "sayings",
    "asyncapi",
    *(f"admission/{name}" for name in ("allowance", "budgets", "doors", "limits", "locks", "rates", "slots")),
    *(f"journal/{name}" for name in ("facts", "schema", "unfinished")),
    *(f"logs/{name}" for name in ("levels", "rates", "secrets")),
    *(f"identity/{name}" for name in ("gatekeeper", "keys", "people", "tickets", "tokens")),
    *(f"session/{name}" for name in ("shapes", "lines", "ops", "states")),
    "tracing/lines",
    *(f"nodes/{name}" for name in ("asks", "password", "sums")),
    *(f"batch/{name}" for name in ("tasks", "throttle", "order", "results", "retries", "tally")),
)  # fmt: skip
OWNERS = {
    "trio_websocket": {"peer"},
    "wsproto": {"client", "peer"},
    "h11": {"upgrade", "testing"},
    "httpx_ws": {"client"},
    "joserfc": {"identity"},
    "opentelemetry": {"tracing"},
    "structlog": {"logs"},
    "coredis": {"nodes"},
    "prometheus_client": {"metrics"},
}
"""Outside libraries and the rooms that may import them."""
STDLIB_ONLY = (
    "containment/guardian.py",
    "testing/model.py",
    *(f"testing/fake_cli/{path.name}" for path in sorted((PACKAGE / "testing/fake_cli").glob("*.py"))),
)


def modules() -> Iterator[tuple[str, Path]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        yield path.relative_to(PACKAGE).parts[0].removesuffix(".py"), path


def imports(path: Path) -> Iterator[tuple[str, str]]:
    """Yield (kind, name): the package's own rooms, and outside top-level modules."""
    depth = len(path.relative_to(PACKAGE).parts)
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (("outside", alias.name.partition(".")[0]) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield "outside", (node.module or "").partition(".")[0]
        elif isinstance(node, ast.ImportFrom) and node.level == depth:
            names = [node.module] if node.module else [alias.name for alias in node.names]
            yield from (("room", str(name).partition(".")[0]) for name in names)


def test_the_table_is_a_tower() -> None:
    above: set[str] = set()
    for room, allowed in TABLE.items():
        assert allowed <= above | {"__init__"}, f"{room} names a row below it: {allowed - above}"
        above.add(room)


def test_every_module_has_its_row() -> None:
    assert {room for room, _ in modules()} == set(TABLE)


@pytest.mark.parametrize(("room", "path"), list(modules()), ids=lambda value: str(value))
def test_imports_follow_the_table(room: str, path: Path) -> None:
    rooms = {name if name in TABLE else "__init__" for kind, name in imports(path) if kind == "room"} - {room}
    assert rooms <= TABLE[room], f"{path.name} imports {rooms - TABLE[room]}"
    for kind, name in imports(path):
        if kind == "outside" and name in OWNERS:
            assert room in OWNERS[name], f"{path.name} must not import {name}"


@pytest.mark.parametrize("room", ASYNC_FREE)
def test_words_and_rules_never_wait(room: str) -> None:
    tree = ast.parse((PACKAGE / f"{room}.py").read_text())
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.AsyncFunctionDef | ast.Await)]
    assert not {"trio", "time", "datetime"} & {name for _, name in imports(PACKAGE / f"{room}.py")}


@pytest.mark.parametrize("name", STDLIB_ONLY)
def test_what_runs_without_site_packages_imports_none(name: str) -> None:
    import sys

    outside = {module for kind, module in imports(PACKAGE / name) if kind == "outside"}
    assert outside <= sys.stdlib_module_names
    assert not [module for kind, module in imports(PACKAGE / name) if kind == "room"]


def functions() -> Iterator[tuple[str, int]]:
    for _, path in modules():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield f"{path.name}:{node.name}", (node.end_lineno or 0) - node.lineno + 1


def test_functions_are_short() -> None:
    lengths = sorted(length for _, length in functions())
    assert statistics.median(lengths) <= 8
    assert lengths[int(len(lengths) * 0.9)] <= 25
    assert not [name for name, length in functions() if length > 50]


def test_every_module_opens_with_its_duty() -> None:
    for _, path in modules():
        text = ast.get_docstring(ast.parse(path.read_text()))
        assert text, path
        assert text.split("\n")[0].endswith((".", "`.", ":")), path


def test_modules_are_of_a_size_to_read() -> None:
    lengths = {path.name: len(path.read_text().splitlines()) for _, path in modules()}
    assert lengths.pop("guardian.py") <= 720  # runs by itself, so it is one file
    assert statistics.median(lengths.values()) <= 250
    assert max(lengths.values()) <= 450
