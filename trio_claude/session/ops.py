"""What a client says to the gateway itself: to start, to stop, to leave, to come back."""

from __future__ import annotations

import uuid
from collections.abc import Collection
from typing import Any

import attrs

from ..errors import BadMessage, NotOffered
from ..messages import META_LIMIT, META_PATTERN, Options, parse_object, parse_options
from .shapes import any_object, anything, match, one_of, record

MODES = ("interrupt", "end", "kill")
ROLES = ("owner", "viewer")


@attrs.frozen
class Start:
    """The first message of a new session: a name, the options, and the id that the CLI's session gets."""

    meta: str
    options: Options
    session: str
    grace: float = 0.0
    """Seconds for which the run goes on without its client."""
    recall: bool = False
    """Whether the model is told of a turn that was cut off."""
    client: str = ""
    """What the client calls itself, so that its messages are counted apart from others'."""


@attrs.frozen
class Attach:
    """The first message of a client that comes back to a run, or watches it: which one, and the last line it has."""

    run: str
    after: int
    role: str | None = None
    """As what: the `owner`, in place of one there is, a `viewer`, or None, the owner if there is none."""
    client: str = ""
    """What the client calls itself, so that its messages are counted apart from others'."""


@attrs.frozen
class Detach:
    """Leave, and let the run go on for as long as was said at the start."""


@attrs.frozen
class Stop:
    """End the turn (`interrupt`), the run politely (`end`), or the tree now (`kill`)."""

    mode: str


TOKEN, TOKEN_LIMIT = r"[0-9A-Za-z_-]+", 64
START = record(
    {"type": one_of("gateway"), "op": one_of("start"), "meta": match(META_PATTERN, META_LIMIT)},
    {"options": any_object, "client": match(TOKEN, TOKEN_LIMIT)},
)
STOP = record({"type": one_of("gateway"), "op": one_of("stop"), "mode": one_of(*MODES)})
DETACH = record({"type": one_of("gateway"), "op": one_of("detach")})
ATTACH = record(
    {"type": one_of("gateway"), "op": one_of("attach"), "run": match(r"[0-9a-f]+", 64)},
    {"after": anything, "as": one_of(*ROLES), "client": match(TOKEN, TOKEN_LIMIT)},
)
LINES_LIMIT = 10**12
RECALL = (
    "(Your last turn was cut off before it ended. I had said:\n\n{prompt}\n\n"
    "Of your answer I was shown this much:\n\n{text}\n\nWhat follows is what I say now.)"
)
"""What the model is told of a turn that was cut off, if the client wants that."""


def parse_start(raw: str | bytes, allowed: Collection[str], max_timeout: float, max_grace: float) -> Start | Attach:
    """Return a client's first message. Raises `BadMessage`, and `NotOffered` for what this server does not do."""
    said = parse_object(raw)
    if said.get("type") == "gateway" and said.get("op") == "attach":
        line = ATTACH("", said)
        return Attach(line["run"], _line_number(line.get("after", 0)), line.get("as"), line.get("client", ""))
    if said.get("type") != "gateway" or said.get("op") != "start":
        raise BadMessage('the first message must be {"type":"gateway","op":"start","meta":…}')
    line = START("", said)
    options = dict(line.get("options", {}))
    grace = _grace(options.pop("on_disconnect", "kill"), max_grace)
    recall = options.pop("recall", False)
    if not isinstance(recall, bool):
        raise BadMessage("recall must be true or false")
    start = _start(line["meta"], parse_options(options, tuple(allowed), max_timeout), grace)
    if recall and start.options.resume is None:
        raise BadMessage("recall takes a session to go on from: name it with resume")
    return attrs.evolve(start, recall=recall, client=line.get("client", ""))


def _line_number(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= LINES_LIMIT:
        raise BadMessage(f"after must be a whole number from 0 to {LINES_LIMIT}")
    return value


def _grace(wish: Any, most: float) -> float:
    """Return for how many seconds a run goes on without its client."""
    if wish == "kill":
        return 0.0
    if not isinstance(wish, dict) or set(wish) != {"grace"}:
        raise BadMessage('on_disconnect must be "kill" or {"grace":SECONDS}')
    if not most:
        raise NotOffered("on_disconnect: this server keeps no run whose client has left; leave it out, or say kill")
    grace = wish["grace"]
    if isinstance(grace, bool) or not isinstance(grace, int | float) or not 0 < grace <= most:
        raise BadMessage(f"on_disconnect: grace must be more than 0 and at most {most:g} seconds")
    return float(grace)


def _start(meta: str, options: Options, grace: float) -> Start:
    if options.fork and options.resume is None:
        raise BadMessage("fork takes a session to fork from: name it with resume")
    new = options.resume is None or options.fork
    return Start(meta, options, str(uuid.uuid4()) if new or options.resume is None else options.resume, grace)


def recalling(said: dict[str, Any], prompt: str, text: str) -> dict[str, Any]:
    """Return a message of the client that tells the model first of a turn that was cut off.

    In the message, because the CLI goes on with the system prompt that its session began with.
    """
    message = said.get("message")
    if said.get("type") != "user" or not isinstance(message, dict):
        return said
    content = message.get("content")
    blocks = [{"type": "text", "text": content}] if isinstance(content, str) else content
    if not isinstance(blocks, list):
        return said
    told = {"type": "text", "text": RECALL.format(prompt=prompt, text=text)}
    return {**said, "message": {**message, "content": [told, *blocks]}}


def parse_op(said: dict[str, Any]) -> Stop | Detach:
    """Return what a client of a session that has begun says to the gateway. Raises `BadMessage`, `NotOffered`."""
    op = said.get("op")
    if op == "stop":
        return Stop(STOP("", said)["mode"])
    if op == "detach":
        DETACH("", said)
        return Detach()
    if op in ("start", "attach"):
        raise BadMessage("a connection has one run, and this one has begun")
    raise BadMessage("op must be one of start, attach, stop, detach")
