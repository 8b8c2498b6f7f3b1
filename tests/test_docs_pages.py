"""Rule: the tutorial and the how-to pages can be followed word by word, and every other sample can at least be read."""

from __future__ import annotations

from pathlib import Path

import attrs
import pytest
from harness import Backend, ask, directive
from nginx import free_port, open_nginx
from samples import blocks, compare, follow, parse

from trio_claude.events import ConnectionOpened

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
FOLLOWED = [
    page
    for page in [DOCS / "tutorial.md", *sorted((DOCS / "howto").glob("*.md"))]
    if any(block.runs for block in blocks(page))
]
NEEDS = {"nodes": (pytest.mark.redis, pytest.mark.nginx)}
"""The real parts that a page takes beside the server."""
READ = [*sorted(ROOT.glob("*.md")), *sorted(DOCS.rglob("*.md"))]


@pytest.mark.parametrize(
    "page", [pytest.param(page, marks=NEEDS.get(page.stem, ()), id=page.stem) for page in FOLLOWED]
)
async def test_a_page_can_be_followed(page: Path, folder: Path) -> None:
    await follow(page, folder)


@pytest.mark.nginx
async def test_the_page_on_nginx_shows_a_proxy_that_works(fake: Backend, folder: Path) -> None:
    """Without TLS and on other ports; runs stream through it, and the client's address is believed."""
    port = free_port()
    async with fake.serve(trusted_proxies=("127.0.0.1",)) as server, open_nginx(folder, port, server.port):
        said = await ask(Proxy(port), directive("slow", n=3, ms=10))
    assert said.code == 1000
    assert said.of_type("result")
    (opened,) = [event for event in fake.events if isinstance(event, ConnectionOpened)]
    assert opened.peer.startswith("127.0.0.1")


@attrs.frozen
class Proxy:
    port: int


@pytest.mark.parametrize("page", READ, ids=lambda page: page.stem)
def test_every_sample_can_be_read(page: Path) -> None:
    for block in blocks(page):
        parse(block)


@pytest.mark.parametrize(
    ("page", "wrong"),
    [
        ("```sh\necho one\nfalse\necho two\n```\n", "page.md, line 1: one"),
        ("```python\nprint('one')\nassert 0\n```\n", "AssertionError"),
        ("```sh\necho one two\n```\n\n```text\none…three\n```\n", "'three' is not in"),
        ("<!-- serve -->\n```sh\nexit 1\n```\n", "page.md, line 2: "),
    ],
)
async def test_what_fails_on_a_page_is_told(page: str, wrong: str, folder: Path) -> None:
    path = folder / "page.md"
    path.write_text(page)
    with pytest.raises(AssertionError, match=wrong):
        await follow(path, folder)


@pytest.mark.parametrize(
    ("block", "error"),
    [
        ("sh\nif true", "bash"),
        ("python\nfor x", "invalid syntax"),
        ("json\n{", "Expecting"),
        ("toml\nno_setting = 1", "no_setting"),
        ("nginx\nlisten 1", "listen"),
    ],
)
def test_what_can_not_be_read_is_told(block: str, error: str, tmp_path: Path) -> None:
    path = tmp_path / "page.md"
    path.write_text(f"```{block}\n```\n")
    with pytest.raises(Exception, match=error):
        parse(*blocks(path))


def test_what_is_typed_and_what_comes_is_compared_in_order(tmp_path: Path) -> None:
    path = tmp_path / "page.md"
    path.write_text("```text\n> one\n…two\n```\n")
    compare(*blocks(path), "first\n> one\n  and two")
    with pytest.raises(AssertionError, match="'two'"):
        compare(*blocks(path), "two > one")
