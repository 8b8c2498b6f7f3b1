"""The server's frames held against /asyncapi.json: every client of the tests hands its frames to here."""

from __future__ import annotations

import collections
import functools
import json
import re
from typing import Any

from jsonschema import Draft7Validator
from jsonschema.exceptions import ValidationError
from jsonschema.validators import extend

from trio_claude.asyncapi import describe, event_message

DOCUMENT = describe(asks=True)
SCHEMAS: dict[str, Any] = DOCUMENT["components"]["schemas"]
OWN = ('{"info":', '{"stderr":', '{"error":')
"""How the server's own frames on /ws/claude begin."""
seen: collections.Counter[str] = collections.Counter()
"""How often a frame of each schema has been held against it."""
UNSAID = (1006,)
"""What a client takes for a close code where it was told none."""


def _pattern(_validator: Any, pattern: str, value: Any, _schema: Any) -> Any:
    """Look for a pattern as JavaScript does, whose `$` is the end and nothing before it."""
    if isinstance(value, str) and not re.search(re.sub(r"\$$", r"\\Z", pattern), value):
        yield ValidationError(f"{value!r} does not match {pattern}")


Validator = extend(Draft7Validator, {"pattern": _pattern})


@functools.cache
def validator(name: str) -> Any:
    return Validator(SCHEMAS[name])


def check(name: str, said: object) -> None:
    assert name in SCHEMAS, f"no schema {name}: {said}"
    validator(name).validate(said)
    seen[name] += 1


def check_frame(text: str) -> None:
    """Check a frame of /ws/claude, if it is the server's own."""
    own = next((start for start in OWN if text.startswith(start)), None)
    if own:
        check(own[2:-2].capitalize(), json.loads(text))


def check_event(text: str, *, first: bool) -> None:
    """Check a frame of /ws/session, if it is the server's own."""
    if text.startswith('{"type":"gateway"'):
        said = json.loads(text)
        check(event_message(said["event"]), said)
        assert (said["event"] == "hello") == first, text
    else:
        assert not first, text


def check_close(channel: str, code: int) -> None:
    assert code in UNSAID or str(code) in DOCUMENT["channels"][channel]["x-close-codes"], code
