"""How Sphinx builds these pages: `sphinx-build -W -n docs site`.

Warnings are errors in the tests, broken links among them; nothing here asks a network.
"""

import sys
from pathlib import Path

from sphinx.application import Sphinx

import trio_claude

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

project = "trio-claude"
version = release = trio_claude.__version__
html_title = f"trio-claude {release}"
html_theme = "furo"
html_copy_source = False
html_show_copyright = False
html_theme_options = {"navigation_with_keys": True}

extensions = ["myst_parser", "sphinx.ext.autodoc", "from_code"]
exclude_patterns = ["_ext", "_build", "site"]
myst_heading_anchors = 3
myst_enable_extensions = ["colon_fence"]
highlight_language = "text"
smartquotes = False  # words of docstrings are copied into programs

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_default_options = {"members": True}
default_role = "literal"
nitpick_ignore_regex = [
    # What belongs to others: there is no network here to look their pages up.
    (r"py:.*", r"(anyio|attr|attrs|claude_agent_sdk|collections|contextlib|enum|httpx|pathlib|socket|trio|typing)\..*"),
    # Names inside that no program of yours needs: they stand in signatures only.
    (
        r"py:.*",
        r"trio_claude\.(containment|journal|runs|workplace|run|stage|entrance|telling|client\.(sockets|links))\..*",
    ),
    (r"py:.*", r"trio_claude\.testing\.model\.Directive"),
    (r"py:class", r"Nodes"),  # its module is imported only where servers share a Redis
    # They have a page of their own, made of the code.
    (r"py:.*", r"trio_claude\.(events\..*|config\.Config)"),
]

for name in trio_claude.__all__:  # they are loaded when they are first used, and autodoc looks at what is there
    getattr(trio_claude, name)

GIVEN = {"Engine", "OpenRun", "Server", "Answer", "Session", "Turn", "MessagesApi"}
"""Classes whose objects a program is given and never makes."""
INSIDE = {
    "lines",
    "stderr_lines",
    "denied",
    "execute",
    "part",
    "read",
    "wait_started",
    "workplace",
    "containment",
    "runs",
}
"""What other rooms call on these."""


def hide_signature(_app: Sphinx, _what: str, name: str, *_rest: object) -> tuple[str, None] | None:
    """Show no signature of what is given."""
    return ("", None) if name.rpartition(".")[2] in GIVEN else None


def hide_member(_app: Sphinx, _what: str, name: str, thing: object, _skip: bool, _options: object) -> bool | None:
    """Leave out what is no program's to call."""
    home = getattr(thing, "__qualname__", "").partition(".")[0]
    return True if name in INSIDE and home in GIVEN else None


def setup(app: Sphinx) -> None:
    """Tell Sphinx of the two."""
    app.connect("autodoc-process-signature", hide_signature)
    app.connect("autodoc-skip-member", hide_member)
