"""From a request's headers to an `Identity`, or one refusal that is always the same.

Where a credential may stand: `Authorization: Bearer`, or, from a browser's socket, `Sec-WebSocket-Protocol`; never in
an address.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from pathlib import Path

from ..config import Config
from ..errors import ConfigError, HttpRefusal
from .keys import PREFIX, TOGETHER, Keyring
from .people import LOCAL, Identity
from .tokens import Terms, Tokens

BEARER, TICKET = "bearer.", "ticket."
"""How the subprotocols begin that carry a credential, in base64url."""


class Gatekeeper:
    """Who may come in, by one configuration. Raises `ConfigError` where a file of keys is bad."""

    def __init__(self, config: Config) -> None:
        if config.isolated == "off" and config.jwt_keys:
            raise ConfigError(TOGETHER)
        most = 1 if config.isolated == "off" else None
        self._keyring = Keyring(Path(config.keys), most) if config.keys else None
        terms = Terms(config.jwt_issuer, config.jwt_audience, config.jwt_leeway)
        self._tokens = Tokens(Path(config.jwt_keys), terms) if config.jwt_keys else None

    @property
    def asks(self) -> bool:
        """Whether clients must say who they are."""
        return self._keyring is not None or self._tokens is not None

    @property
    def lacks_keys(self) -> bool:
        """Whether the file of keys is not there, so that nobody has one that is good."""
        return self._keyring is not None and self._keyring.gone

    @property
    def fault(self) -> str:
        """What is wrong with the file of keys as it is now, empty where nothing is."""
        return self._keyring.fault if self._keyring else ""

    def refresh(self, now: float) -> None:
        """Look at the file of keys again, if that is due."""
        if self._keyring:
            self._keyring.refresh(now)

    def ticket(self, headers: Mapping[str, str]) -> str | None:
        """Return the ticket that a request carries, None where it carries another credential, several or none."""
        found = _credentials(headers) if self.asks else []
        return found[0][1] if len(found) == 1 and found[0][0] == TICKET else None

    def identify(self, headers: Mapping[str, str], holder: Identity | None, now: float, wall: float) -> Identity | None:
        """Return who sent a request, None where it carries no credential. Raises `HttpRefusal`.

        `holder` is whose its ticket is, None where it has none that is good.
        """
        if not self.asks:
            return LOCAL
        found = _credentials(headers)
        if not found:
            return None
        if len(found) > 1:
            raise HttpRefusal(400, "credentials", "one credential, not several")
        kind, secret = found[0]
        identity = holder if kind == TICKET else self._find(secret, now, wall)
        if identity is None or not self.knows(identity, now, wall):
            raise unauthorized()
        return identity

    def knows(self, identity: Identity, now: float, wall: float) -> bool:
        """Return whether the credential that an identity came with is still good."""
        if identity is LOCAL:
            return not self.asks
        if wall >= identity.until:
            return False
        if identity.name.startswith("key:"):
            return self._keyring is not None and self._keyring.holds(identity, now, wall)
        return self._tokens is not None and self._tokens.holds(identity)

    def current(self, identity: Identity) -> Identity:
        """Return an identity with the role and limits that its key has now."""
        return self._keyring.current(identity) if self._keyring else identity

    def _find(self, secret: str, now: float, wall: float) -> Identity | None:
        if secret.startswith(PREFIX):
            return self._keyring.find(secret, now, wall) if self._keyring else None
        return self._tokens.find(secret, wall) if self._tokens else None


def unauthorized() -> HttpRefusal:
    """Return the one answer to whoever has no good credential."""
    return HttpRefusal(
        401,
        "unauthorized",
        "a valid key or token is needed: Authorization: Bearer …",
        (("WWW-Authenticate", "Bearer"),),
    )


def _credentials(headers: Mapping[str, str]) -> list[tuple[str, str]]:
    """Return the credentials that a request carries, each with its kind."""
    found = []
    if authorization := headers.get("authorization"):
        scheme, _, secret = authorization.partition(" ")
        found.append((BEARER, secret.strip() if scheme.lower() == "bearer" else ""))
    offered = [part.strip() for part in headers.get("sec-websocket-protocol", "").split(",")]
    for kind in (BEARER, TICKET):
        found += [(kind, _decoded(part.removeprefix(kind))) for part in offered if part.startswith(kind)]
    return found


def _decoded(text: str) -> str:
    """Return what base64url says, empty where it says nothing."""
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), altchars="-_", validate=True).decode("ascii")
    except (binascii.Error, ValueError):
        return ""
