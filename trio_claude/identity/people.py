"""What is known of a client. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import attrs

ROLES = ("user", "viewer", "admin")
"""`user` runs CLIs and sees its own runs; `viewer` starts nothing and sees all runs; `admin` may do everything."""


@attrs.frozen
class Identity:
    """Who a client is.

    `name` is `local`, `key:NAME` or `jwt:ISSUER#SUBJECT`. `limits` are its own, by the names of the configuration's
    fields, in place of everybody's. `until` is when its credential ends, in seconds of the wall clock. `credential`
    tells one credential of the same name from another; it is no secret.
    """

    name: str
    role: str = "user"
    limits: Mapping[str, float] = attrs.field(factory=dict, hash=False)
    until: float = math.inf
    credential: str = attrs.field(default="", repr=False)

    @property
    def sees_all(self) -> bool:
        """Whether it may see everybody's runs."""
        return self.role != "user"

    @property
    def may_run(self) -> bool:
        """Whether it may start runs."""
        return self.role != "viewer"


def packed(identity: Identity) -> dict[str, Any]:
    """Return an identity as JSON can have it, for another server that it comes to."""
    until = None if math.isinf(identity.until) else identity.until
    return {**attrs.asdict(identity), "limits": dict(identity.limits), "until": until}


def unpacked(said: Mapping[str, Any]) -> Identity:
    """Return the identity that another server has packed."""
    return Identity(**{**said, "until": math.inf if said["until"] is None else said["until"]})


LOCAL = Identity("local", "admin")
"""Everybody, where nobody is asked who they are."""
