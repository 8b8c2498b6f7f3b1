"""Draw bars in SVG, by hand: a panel for each figure of a scenario that is worth one.

It is pure: what it makes is text.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from html import escape

from .peers import OURS, Peer
from .report import rounded
from .runner import Outcome
from .scenario import Metric

LABEL, BAR, VALUE = 170, 360, 90
WIDTH = LABEL + BAR + VALUE
ROW, HEAD, GAP = 20, 40, 14
TITLE, TITLE_CHARACTERS = 34, 66
OURS_COLOUR, THEIR_COLOUR = "#c15f3c", "#8a94a6"
STYLE = "text{font:12px system-ui,sans-serif;fill:#222}.t{font-weight:600;font-size:14px}.h{font-weight:600}"


def _text(x: float, y: float, said: str, more: str = "") -> str:
    return f'<text x="{x:g}" y="{y:g}"{more}>{escape(said)}</text>'


def _bar(y: float, name: str, value: float, most: float, *, ours: bool) -> str:
    width = max(1.0, BAR * value / most) if most else 1.0
    colour = OURS_COLOUR if ours else THEIR_COLOUR
    return (
        _text(LABEL - 8, y + 14, name, ' text-anchor="end"')
        + f'<rect x="{LABEL}" y="{y + 3:g}" width="{width:.1f}" height="{ROW - 6}" fill="{colour}"/>'
        + _text(LABEL + width + 6, y + 14, rounded(value))
    )


def _panel(outcome: Outcome, metric: Metric, peers: Mapping[str, Peer], top: float) -> tuple[str, float]:
    """Return a panel and where it ends."""
    found = [(name, value) for name in peers if (value := outcome.median(name, metric.name)) is not None]
    found.sort(key=lambda pair: pair[1], reverse=metric.more)
    most = max((value for _, value in found), default=0.0)
    better = "more is better" if metric.more else "less is better"
    parts = [_text(LABEL, top + HEAD - 14, f"{metric.title}, {metric.unit} ({better})", ' class="h"')]
    for at, (name, value) in enumerate(found):
        ours = peers[name].ours or name == OURS
        parts.append(_bar(top + HEAD + at * ROW, peers[name].title, value, most, ours=ours))
    return "\n".join(parts), top + HEAD + len(found) * ROW + GAP


def svg(outcome: Outcome, peers: Mapping[str, Peer]) -> str:
    """Return a scenario's picture."""
    title = textwrap.wrap(f"{outcome.scenario.title} ({outcome.scenario.cli})", TITLE_CHARACTERS)
    top: float = TITLE + ROW * (len(title) - 1)
    parts = [_text(8, 22 + at * ROW, line, ' class="t"') for at, line in enumerate(title)]
    for metric in outcome.scenario.metrics:
        if metric.plot:
            part, top = _panel(outcome, metric, peers, top)
            parts.append(part)
    size = f'viewBox="0 0 {WIDTH} {top:g}" width="{WIDTH}" height="{top:g}"'
    ground = '<rect width="100%" height="100%" fill="#fff"/>'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img"><style>{STYLE}</style>{ground}'
    return "\n".join([head, *parts, "</svg>\n"])
