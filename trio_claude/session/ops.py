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


@attrs.frozen
class Start:
    """The first message of a new session: a name, the options, and the id that the CLI's session gets."""

    meta: str
    options: Options
    session: str


@attrs.frozen
class Stop:
    """End the turn (`interrupt`), the run politely (`end`), or the tree now (`kill`)."""

    mode: str


START = record(
    {"type": one_of("gateway"), "op": one_of("start"), "meta": match(META_PATTERN, META_LIMIT)}, {"options": any_object}
)
STOP = record({"type": one_of("gateway"), "op": one_of("stop"), "mode": one_of(*MODES)})
DETACH = record({"type": one_of("gateway"), "op": one_of("detach")})
ATTACH = record(
    {"type": one_of("gateway"), "op": one_of("attach"), "run": match(r"[0-9a-f]+", 64)}, {"after": anything}
)
ON_DISCONNECT = one_of("kill")


def parse_start(raw: str | bytes, allowed: Collection[str], max_timeout: float) -> Start:
    """Return a client's first message. Raises `BadMessage`, and `NotOffered` for what this server does not do."""
    said = parse_object(raw)
    if said.get("type") == "gateway" and said.get("op") == "attach":
        ATTACH("", said)
        raise NotOffered("attach: this server keeps no run whose client has left")
    if said.get("type") != "gateway" or said.get("op") != "start":
        raise BadMessage('the first message must be {"type":"gateway","op":"start","meta":…}')
    line = START("", said)
    options = dict(line.get("options", {}))
    _check_on_disconnect(options.pop("on_disconnect", "kill"))
    return _start(line["meta"], parse_options(options, tuple(allowed), max_timeout))


def _check_on_disconnect(wish: Any) -> None:
    if isinstance(wish, dict) and "grace" in wish:
        raise NotOffered("on_disconnect: this server keeps no run whose client has left; leave it out, or say kill")
    ON_DISCONNECT("on_disconnect", wish)


def _start(meta: str, options: Options) -> Start:
    if options.fork and options.resume is None:
        raise BadMessage("fork takes a session to fork from: name it with resume")
    new = options.resume is None or options.fork
    return Start(meta, options, str(uuid.uuid4()) if new or options.resume is None else options.resume)


def parse_op(said: dict[str, Any]) -> Stop:
    """Return what a client of a session that has begun says to the gateway. Raises `BadMessage`, `NotOffered`."""
    op = said.get("op")
    if op == "stop":
        return Stop(STOP("", said)["mode"])
    if op == "detach":
        DETACH("", said)
        raise NotOffered("detach: this server keeps no run whose client has left")
    if op in ("start", "attach"):
        raise BadMessage("a connection has one run, and this one has begun")
    raise BadMessage("op must be one of start, attach, stop, detach")
