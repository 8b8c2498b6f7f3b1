"""How much one identity, or all together, may use. Pure."""

from __future__ import annotations

from collections.abc import Mapping

import attrs

from ..config import Config


@attrs.frozen(kw_only=True)
class Limits:
    """The most that one identity may use, or all together. 0 is no limit."""

    connections: int = 0
    """WebSockets at once."""
    runs: int = 0
    """Runs at once."""
    waiting: int = 0
    """Runs that wait for a slot."""
    prompts_per_minute: float = 0
    """Prompts and turns; so many may come at once, and then they come back evenly over the minute."""
    tokens_per_day: int = 0
    """Tokens in and out, in a day of UTC."""
    dollars_per_day: float = 0
    """What the CLI reckons that its API calls cost, in a day of UTC."""


@attrs.frozen
class Member:
    """An identity as this room knows it: a name, and what it may use."""

    name: str = "local"
    limits: Limits = attrs.field(factory=Limits)


def own_limits(config: Config, own: Mapping[str, float]) -> Limits:
    """Return the limits of an identity: the configuration's, but for those that it has of its own."""
    fields = {
        field.name: own.get(_NAMES[field.name], getattr(config, _NAMES[field.name])) for field in attrs.fields(Limits)
    }
    return Limits(**fields)


def total_limits(config: Config) -> Limits:
    """Return the limits of all identities together."""
    return Limits(
        connections=config.max_connections,
        runs=config.run_slots,
        waiting=config.max_waiting,
        prompts_per_minute=config.total_prompts_per_minute,
        tokens_per_day=config.total_tokens_per_day,
        dollars_per_day=config.total_dollars_per_day,
    )


_NAMES = {
    "connections": "connections_per_identity",
    "runs": "runs_per_identity",
    "waiting": "waiting_per_identity",
    "prompts_per_minute": "prompts_per_minute",
    "tokens_per_day": "tokens_per_day",
    "dollars_per_day": "dollars_per_day",
}
"""The fields of the configuration that hold an identity's limits."""
