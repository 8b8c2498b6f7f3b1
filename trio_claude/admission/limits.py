"""How much one identity, or all together, may use. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import attrs

from ..config import IDENTITY_LIMITS, Config


@attrs.frozen(kw_only=True)
class Limits:
    """The most that one identity may use, or all together, in the order of `IDENTITY_LIMITS`. 0 is no limit."""

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
    """Those of when it asked."""
    _look: Callable[[], Limits] | None = attrs.field(default=None, eq=False, repr=False)

    @property
    def now(self) -> Limits:
        """Its limits as they are now, for what has waited."""
        return self._look() if self._look else self.limits


def own_limits(config: Config, own: Mapping[str, float]) -> Limits:
    """Return the limits of an identity: the configuration's, but for those that it has of its own."""
    values = (own.get(name, getattr(config, name)) for name in IDENTITY_LIMITS)
    return Limits(**dict(zip((field.name for field in attrs.fields(Limits)), values, strict=True)))


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
