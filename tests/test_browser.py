"""Rule: in a real browser only our own page, which test_page.py looks at, and one that the operator named come in."""

from __future__ import annotations

from pathlib import Path

import pytest
from browser import browse, serve_page
from harness import Backend, until

pytestmark = [pytest.mark.node, pytest.mark.browser]
PAGE = {"/": ("text/html; charset=utf-8", b'<!doctype html><link rel="icon" href="data:,"><body>here</body>')}


async def test_a_page_of_another_origin_is_refused(fake: Backend, modules: Path, tmp_path: Path) -> None:
    async with fake.serve() as server, serve_page(PAGE) as origin:
        given = {"socket": f"ws://127.0.0.1:{server.port}/ws/claude", "fetched": f"{server.url}/healthz"}
        seen = await browse(modules, tmp_path, "probe", origin, given)
    assert seen["text"] == "here"
    assert seen["opened"] == "closed 1006"
    assert "Failed to fetch" in seen["answered"]
    assert not fake.ended


async def test_a_page_that_the_operator_named_comes_in(fake: Backend, modules: Path, tmp_path: Path) -> None:
    async with serve_page(PAGE) as origin, fake.serve(allow_origin=(origin,)) as server:
        given = {"socket": f"ws://127.0.0.1:{server.port}/ws/claude", "fetched": f"{server.url}/healthz"}
        seen = await browse(modules, tmp_path, "probe", origin, given)
        await until(lambda: not server._entrance.inside)
    assert seen["opened"].startswith("heard")


async def test_a_name_that_was_bound_to_us_later_is_refused(fake: Backend, modules: Path, tmp_path: Path) -> None:
    """DNS rebinding: for the browser the page is of the server's own origin, and only the Host tells."""
    async with fake.serve() as server:
        evil = f"evil.example:{server.port}"
        given = {
            "args": ["--host-resolver-rules=MAP evil.example 127.0.0.1"],
            "socket": f"ws://{evil}/ws/claude",
            "fetched": f"http://{evil}/healthz",
        }
        seen = await browse(modules, tmp_path, "probe", f"http://{evil}/", given)
    assert "this Host is not served here" in seen["text"]
    assert seen["opened"] == "closed 1006"
    assert seen["answered"] == 403
    assert not fake.ended
