"""What a program is asked about a tool, and what it may decide.

Pure. This module must never decide by itself but to deny.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

import attrs

Json: TypeAlias = dict[str, Any]


@attrs.frozen
class Allow:
    """Let the tool run, with `input` in place of its own where one is given."""

    input: Json | None = None


@attrs.frozen
class Deny:
    """Keep the tool from running; the model reads the message. `interrupt` ends the turn."""

    message: str = "denied by the user"
    interrupt: bool = False


@attrs.frozen
class Approval:
    """What the CLI wants to be allowed: a tool and its input; `said` is all of the CLI's request."""

    id: str
    tool: str
    input: Json
    said: Json = attrs.field(repr=False)


Decide: TypeAlias = Callable[[Approval], Awaitable[Allow | Deny]]


async def deny(_approval: Approval) -> Allow | Deny:
    """Deny whatever is asked for."""
    return Deny("nobody is here to be asked")


def decision(made: Allow | Deny) -> Json:
    """Return what the CLI is told of a decision."""
    if isinstance(made, Allow):
        return {"behavior": "allow", **({} if made.input is None else {"updatedInput": made.input})}
    return {"behavior": "deny", "message": made.message, **({"interrupt": True} if made.interrupt else {})}
