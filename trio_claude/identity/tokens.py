"""JSON Web Tokens (RFC 7519): signed by a key of a file, each key for one algorithm only.

Rule 1: a token's header names a key (`kid`) and nothing else about it is believed: no algorithm, address or key in it.
Rule 2: `exp`, `iss`, `aud` and `sub` must be there. Needs the [jwt] extra.
"""

from __future__ import annotations

import hashlib
import json
import re
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from ..errors import ConfigError
from .people import ROLES, Identity

if TYPE_CHECKING:
    from joserfc.jwk import Key

ALGORITHMS: dict[str, tuple[str, ...]] = {
    "oct": ("HS256", "HS384", "HS512"),
    "RSA": ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"),
    "EC": ("ES256", "ES384", "ES512"),
    "OKP": ("EdDSA", "Ed25519"),
}
"""What a key may be for, by its type."""
TOKEN_LIMIT = 8192
"""Characters of a token."""
EXPIRY_MOST = 10**12
"""Seconds since 1970 that a token may be good to."""
SECRET_LEAST = 32
"""Bytes of a secret that signs."""
_SUBJECT = re.compile(r"[!-~]{1,256}")


@attrs.frozen
class Terms:
    """What tokens must say: who gave them out, for whom; and how far clocks may be apart, in seconds."""

    issuers: tuple[str, ...]
    audience: str
    leeway: float


class Tokens:
    """The keys of one file (a JWK set, RFC 7517). Raises `ConfigError` where the file is bad."""

    def __init__(self, path: Path, terms: Terms) -> None:
        self._terms = terms
        self._keys = _read(path)
        self._credentials = {kid: _credential(kid, key, terms.audience) for kid, (key, _) in self._keys.items()}

    def find(self, token: str, wall: float) -> Identity | None:
        """Return whose token it is, None where it is not good."""
        from joserfc import jwt
        from joserfc.errors import JoseError

        if len(token) > TOKEN_LIMIT or token.count(".") != 2:
            return None
        kid = _kid(token)
        if kid not in self._keys:
            return None
        key, algorithm = self._keys[kid]
        try:
            claims = jwt.decode(token, key, algorithms=[algorithm]).claims
            self._registry(wall).validate(claims)
        except (JoseError, ValueError, TypeError, RecursionError, OverflowError):
            return None
        return _identity(claims, self._credentials[kid], self._terms.leeway)

    def holds(self, identity: Identity) -> bool:
        """Return whether the key that signed an identity's token is in the file, and its issuer and audience good."""
        issuer = identity.name.removeprefix("jwt:").partition("#")[0]
        return issuer in self._terms.issuers and identity.credential in self._credentials.values()

    def _registry(self, wall: float) -> Any:
        from joserfc import jwt

        return jwt.JWTClaimsRegistry(
            now=int(wall),
            leeway=int(self._terms.leeway),
            exp={"essential": True},
            sub={"essential": True},
            iss={"essential": True, "values": list(self._terms.issuers)},
            aud={"essential": True, "value": self._terms.audience},
        )


def _credential(kid: str, key: Key, audience: str) -> str:
    """Return what tells tokens of one key, and for one audience, from others: another key may have the same kid."""
    said = f"{key.thumbprint()} {audience}".encode("utf-8", "surrogatepass")
    return f"{kid}:{hashlib.sha256(said).hexdigest()[:16]}"


def _identity(claims: dict[str, Any], credential: str, leeway: float) -> Identity | None:
    """Return what checked claims say, None where a name or role is none."""
    issuer, subject, role, until = claims["iss"], claims["sub"], claims.get("role", "user"), claims["exp"]
    if not isinstance(issuer, str):  # some versions of the library take a list that holds a good one
        return None
    if not isinstance(subject, str) or not _SUBJECT.fullmatch(subject) or role not in ROLES:
        return None
    if isinstance(until, bool) or not isinstance(until, int | float):
        return None
    if not 0 < until < EXPIRY_MOST:
        return None
    return Identity(f"jwt:{issuer}#{subject}", role, until=until + leeway, credential=credential)


def _kid(token: str) -> str | None:
    """Return the key that a token's header names."""
    from joserfc.errors import JoseError
    from joserfc.util import urlsafe_b64decode

    try:
        header = json.loads(urlsafe_b64decode(token.partition(".")[0].encode("ascii")))
    except (JoseError, ValueError, RecursionError):
        return None
    kid = header.get("kid") if isinstance(header, dict) else None
    return kid if isinstance(kid, str) else None


def _read(path: Path) -> dict[str, tuple[Key, str]]:
    """Return the keys of a file that verify, and their algorithms, by `kid`. Raises `ConfigError`, also for none."""
    try:
        said = json.loads(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"jwt_keys: {path} can't be read: {error.strerror}") from None
    except (ValueError, RecursionError):
        said = None
    keys = said.get("keys") if isinstance(said, dict) else None
    if not isinstance(keys, list) or not keys:
        raise ConfigError(f"jwt_keys: {path} is no JWK set with keys")
    found: dict[str, tuple[Key, str]] = {}
    unfit: list[str] = []
    for number, one in enumerate(keys, 1):
        if why := _unfit(one):
            unfit.append(f"jwt_keys: {one.get('kid')!r} {why}")
            continue
        kid, algorithm = _check(one, number)
        if kid in found:
            raise ConfigError(f"jwt_keys: two keys have the kid {kid!r}")
        found[kid] = (_import(one, kid), algorithm)
    if not found:
        raise ConfigError(unfit[0])
    return found


def _unfit(said: Any) -> str:
    """Return why a key verifies no token, empty where it may: a set has keys for other uses too (RFC 7517, 4 and 5)."""
    if not isinstance(said, dict):
        return ""
    use, operations, kind, algorithm = (said.get(name) for name in ("use", "key_ops", "kty", "alg"))
    if use not in (None, "sig") or (isinstance(operations, list) and "verify" not in operations):
        return "verifies no signatures, by its use or key_ops"
    if not isinstance(kind, str) or kind not in ALGORITHMS:
        return f"has no kty of {', '.join(ALGORITHMS)}"
    if algorithm is not None and algorithm not in ALGORITHMS[kind]:
        return _names_no_algorithm(kind)
    return ""


def _names_no_algorithm(kind: str) -> str:
    return f"must name its alg, one of {', '.join(ALGORITHMS[kind])}"


def _check(said: Any, number: int) -> tuple[str, str]:
    """Return the kid and algorithm of a key that is not unfit. Raises `ConfigError`."""
    kid = said.get("kid") if isinstance(said, dict) else None
    if not isinstance(kid, str) or not kid:
        raise ConfigError(f"jwt_keys: key {number} has no kid")
    if said.get("alg") is None:
        raise ConfigError(f"jwt_keys: {kid!r} {_names_no_algorithm(said['kty'])}")
    return kid, str(said["alg"])


def _import(said: dict[str, Any], kid: str) -> Key:
    """Return a key that can verify. Raises `ConfigError`."""
    try:
        from joserfc.errors import JoseError
        from joserfc.jwk import JWKRegistry
    except ImportError:
        raise ConfigError("jwt_keys: needs pip install 'trio-claude[jwt]'") from None
    try:
        with warnings.catch_warnings(action="ignore"):
            key = JWKRegistry.import_key(said)
    except (JoseError, ValueError, TypeError, KeyError, AttributeError):
        raise ConfigError(f"jwt_keys: {kid!r} is no good key") from None
    if isinstance(key.raw_value, bytes) and len(key.raw_value) < SECRET_LEAST:
        raise ConfigError(f"jwt_keys: {kid!r} has fewer than {SECRET_LEAST} bytes")
    return key
