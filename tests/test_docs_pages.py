"""Rule: the tutorial and the how-to pages can be followed word by word, and every other sample can at least be read."""

from __future__ import annotations

from pathlib import Path

import pytest
from samples import blocks, compare, follow, parse

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
FOLLOWED = [
    page
    for page in [DOCS / "tutorial.md", *sorted((DOCS / "howto").glob("*.md"))]
    if any(block.runs for block in blocks(page))
]
READ = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]


@pytest.mark.parametrize("page", FOLLOWED, ids=lambda page: page.stem)
async def test_a_page_can_be_followed(page: Path, folder: Path) -> None:
    await follow(page, folder)


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
