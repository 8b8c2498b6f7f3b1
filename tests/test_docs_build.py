"""Rule: Sphinx builds the pages without a warning, every link leads somewhere, and the tables are the code's."""

from __future__ import annotations

import re
import subprocess
import sys
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import attrs
import pytest

import trio_claude
from trio_claude import client, commands, config, errors, events
from trio_claude.errors import CloseCode, Reason

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
OUTSIDE = {
    "http://127.0.0.1:3000",
    "http://",  # a docstring's word for a scheme
    # the theme's footer
    "https://www.sphinx-doc.org/",
    "https://pradyunsg.me",
    "https://github.com/pradyunsg/furo",
}
"""What pages may link to beyond these pages: there is no network here to look."""

ELSEWHERE = {"__version__", "Answer", "Config", "Ended", "Event", "Observer", "Outcome", "Receipt", "ask"}
"""Public names of the package that are on another page, or are another's."""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pages as they are built, warnings being errors."""
    folder = tmp_path_factory.mktemp("site")
    words = [
        "-m",
        "sphinx",
        "-W",
        "--keep-going",
        "-n",
        "-q",
        "-d",
        str(folder / "doctrees"),
        str(DOCS),
        str(folder / "html"),
    ]
    told = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=False)
    assert told.returncode == 0, told.stderr
    return folder / "html"


class Page(HTMLParser):
    """What a page links to, and what may be linked to in it."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.anchors.add(given.get("id") or "")
        if tag == "a" and given.get("href"):
            self.links.append(unquote(given["href"] or ""))


def test_every_link_of_the_site_leads_somewhere(site: Path) -> None:
    pages = {path: Page(path) for path in site.rglob("*.html")}
    for path, page in pages.items():
        for link in page.links:
            if link.startswith(("http:", "https:", "mailto:")):
                assert link in OUTSIDE, (
                    path,
                    link,
                )
                continue
            name, _, anchor = link.partition("#")
            target = (path.parent / name).resolve() if name else path
            assert target.exists(), (path, link)
            assert not anchor or target.suffix != ".html" or anchor in pages[target].anchors, (path, link)


@pytest.mark.parametrize("name", ["README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md"])
def test_every_link_of_the_first_pages_leads_somewhere(name: str) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", (ROOT / name).read_text()):
        target, _, anchor = link.partition("#")
        assert (ROOT / target).exists(), link
        assert not anchor or anchor in anchors(ROOT / target), link


def anchors(page: Path) -> set[str]:
    """Return the anchors that headings of Markdown get."""
    heads = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


def test_every_page_can_be_found_from_the_first(site: Path) -> None:
    """Sphinx warns of pages in no list; this looks that there is such a list."""
    links = {link.partition("#")[0] for link in Page(site / "index.html").links}
    for page in DOCS.rglob("*.md"):
        assert page.name == "index.md" or str(page.relative_to(DOCS).with_suffix(".html")) in links, page


def codes(site: Path, page: str) -> set[str]:
    """Return what a page of the reference shows as code."""
    return set(re.findall(r'<span class="pre">([^<]*)</span>', (site / "reference" / page).read_text()))


def test_the_reference_has_all_that_the_code_has(site: Path) -> None:
    assert {field.name for field in attrs.fields(config.Config)} <= codes(site, "config.html")
    assert {str(one) for one in Reason} <= codes(site, "ends.html")
    ends = (site / "reference" / "ends.html").read_text()
    assert all(f"<td><p>{one:d}</p></td>" in ends for one in CloseCode)
    assert {errors.SessionBusy.code, errors.TooFast.code, errors.BadMessage.code} <= codes(site, "ends.html")
    assert ends.count("A message that breaks the contract") == 1
    heard = (site / "reference" / "events.html").read_text()
    assert all(f"<h2>{one.__name__}<" in heard for one in events.Event.__args__)
    assert "None`" not in heard, "a | among the types of a field ends no cell"
    api = (site / "reference" / "api.html").read_text()
    names = {f"trio_claude.{name}" for name in set(trio_claude.__all__) - ELSEWHERE}
    names |= {f"trio_claude.client.{name}" for name in client.__all__}
    assert all(f'id="{name}"' in api for name in names), names
    assert "E.g. for int" not in api, "no words are of Python's own classes"
    assert 'query(prompt="Hello"' in unescape(api), "a sample has the quotes that Python takes"
    shown = (site / "reference" / "commands.html").read_text()
    assert all(f"<h2>trio-claude {name}<" in shown for name in commands.COMMANDS)
    assert "What its holder may do." in shown, "a | among the words of an option ends no cell"


def test_a_default_that_changes_is_another_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tables hold no value of their own: they say what the code says now, and stop where a sentence is missing."""
    monkeypatch.syspath_prepend(str(DOCS / "_ext"))
    import from_code

    assert "| `journal` | `auto`; in a program `none` |" in "\n".join(from_code.settings())
    config_class = attrs.make_class(
        "Config", {name: config._option(7, "a thing", high=9, unit="s") for name in from_code.GROUPS}, frozen=True
    )
    monkeypatch.setattr(from_code.config, "Config", config_class)
    assert "| `timeout` | `7` | 0 to 9 s | a thing |" in "\n".join(from_code.settings())
    monkeypatch.setattr(
        from_code.config,
        "Config",
        attrs.make_class("Config", {"host": attrs.field(default="", metadata={"help": "", "unit": ""})}),
    )
    with pytest.raises(LookupError, match="Sessions"):
        list(from_code.settings())
    monkeypatch.delitem(from_code.REASONS, Reason.STALLED)
    with pytest.raises(KeyError, match="stalled"):
        list(from_code.reasons())
