"""API keys: a file of their hashes, which may change while a server runs.

A key has 256 bits of randomness, so one round of SHA-256 hides it; the file holds nothing that opens a door. This
module must never write a key down, and never replace what it knows by a file that it can't read.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import re
import secrets
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
import cattrs
from cattrs.gen import make_dict_structure_fn

from ..config import IDENTITY_LIMITS, KINDS, kind
from ..errors import ConfigError
from .people import ROLES, Identity

PREFIX = "tck_"
"""How every key begins, so that scanners for leaked secrets can find one."""
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.@-]{0,63}")
TOGETHER = "isolation: with `off` all identities would share one home; there can be only one"
LOOK_AGAIN = 1.0
"""Seconds after which the file is looked at again."""


@attrs.frozen
class Key:
    """One key as it stands in the file. `old` is the hash of the key before it, good until `old_until`."""

    hash: str = attrs.field(repr=False, validator=attrs.validators.matches_re(r"[0-9a-f]{64}"))
    role: str = attrs.field(default="user", validator=attrs.validators.in_(ROLES))
    created: str = ""
    limits: dict[str, float] = attrs.field(factory=dict)
    old: str = attrs.field(default="", repr=False, validator=attrs.validators.matches_re(r"([0-9a-f]{64})?"))
    old_until: float = 0.0


def _strict(value: Any, kind: type) -> Any:
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not kind:
        raise TypeError(f"{value!r} is no {kind.__name__}")
    return value


_converter = cattrs.Converter(forbid_extra_keys=True)
for _kind in (str, float):
    _converter.register_structure_hook(_kind, _strict)
_converter.register_structure_hook(Key, make_dict_structure_fn(Key, _converter, _cattrs_forbid_extra_keys=True))


def digest(secret: str) -> str:
    """Return the hash under which a key is kept."""
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


def new_secret() -> str:
    """Return a new key."""
    return PREFIX + secrets.token_urlsafe(32)


def read_keys(path: Path) -> dict[str, Key]:
    """Return the keys in a file by name; an absent file has none. Raises `ConfigError`."""
    try:
        with path.open("rb") as file:
            if stat.S_IMODE(os.fstat(file.fileno()).st_mode) & 0o022:
                raise ConfigError(f"keys: others may write {path}; chmod 600 it")
            said = json.load(file)
        if not isinstance(said, dict):
            raise ConfigError(f"keys: {path} is no file of keys")
        keys = _converter.structure(said, dict[str, Key])
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise ConfigError(f"keys: {path} can't be read: {error.strerror}") from None
    except (ValueError, RecursionError, cattrs.BaseValidationError):
        raise ConfigError(f"keys: {path} is no file of keys") from None
    for name, key in keys.items():
        _check(path, name, key)
    return keys


def _check(path: Path, name: str, key: Key) -> None:
    if not NAME.fullmatch(name):
        raise ConfigError(f"keys: {path} has a name that no key has: {name[:64]!r}")
    if unknown := sorted(set(key.limits) - set(IDENTITY_LIMITS)):
        raise ConfigError(f"keys: {name} has a limit {unknown[0]!r}; there are: {', '.join(IDENTITY_LIMITS)}")
    for limit, value in sorted(key.limits.items()):
        if wrong := wrong_limit(limit, value):
            raise ConfigError(f"keys: {name}: {limit} {wrong}")


def wrong_limit(name: str, value: float) -> str:
    """Return what the limit `name` must be where `value` is not that, empty where it is."""
    if not 0 <= value < float("inf"):
        return "must be 0 or more"
    return f"must be {KINDS[int]}" if value % 1 and kind(name) == KINDS[int] else ""


def write_keys(path: Path, keys: Mapping[str, Key]) -> None:
    """Replace a file of keys, whole or not at all; a new one is its owner's alone. Raises OSError.

    Who could read the old one, a server in its group, can read this one.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    new = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
    there = path.exists()
    owner = (path if there else path.parent).stat()
    try:
        with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            if os.geteuid() == 0:  # the server that reads it may be another user's
                os.fchown(file.fileno(), owner.st_uid, owner.st_gid)
            if there and os.fstat(file.fileno()).st_gid == owner.st_gid:
                os.fchmod(file.fileno(), 0o600 | owner.st_mode & 0o044)
            json.dump(_converter.unstructure(dict(keys)), file, indent=2)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
    except BaseException:  # whatever it was, no half of a file stays; raised again
        new.unlink(missing_ok=True)
        raise


_ABSENT = (0, 0, 0)
"""The stamp of a file that is not there."""


class Keyring:
    """The keys of a file, at most `most`. Raises `ConfigError` where the file is bad; later the old keys stay."""

    def __init__(self, path: Path, most: int | None = None) -> None:
        self._path = path
        self._most = most
        self._stamp = self._look()
        self._keys = self._read()
        self._looked = -LOOK_AGAIN
        self.fault: str = ""

    def find(self, secret: str, now: float, wall: float) -> Identity | None:
        """Return whose key `secret` is. `now` never goes back; `wall` is the wall clock."""
        self.refresh(now)
        hashed, found = digest(secret), None
        for name, key in self._keys.items():
            if hmac.compare_digest(key.hash, hashed):
                found = self._identity(name, key, key.hash)
            if key.old and wall < key.old_until and hmac.compare_digest(key.old, hashed):
                found = attrs.evolve(self._identity(name, key, key.old), until=key.old_until)
        return found

    def holds(self, identity: Identity, now: float, wall: float) -> bool:
        """Return whether the key that an identity came with is still good."""
        self.refresh(now)
        key = self._keys.get(identity.name.removeprefix("key:"))
        if key is None:
            return False
        return identity.credential == key.hash[:16] or (identity.credential == key.old[:16] and wall < key.old_until)

    def current(self, identity: Identity) -> Identity:
        """Return an identity with the role and limits that stand in the file now."""
        key = self._keys.get(identity.name.removeprefix("key:")) if identity.name.startswith("key:") else None
        return attrs.evolve(identity, role=key.role, limits=key.limits) if key else identity

    def refresh(self, now: float) -> None:
        """Read the file again if it has changed; one that can't be read changes nothing but `fault`."""
        if now < self._looked + LOOK_AGAIN:
            return
        self._looked = now
        if (stamp := self._look()) == self._stamp:
            self.fault = ""
            return
        try:
            if stamp == _ABSENT:
                raise ConfigError(f"keys: {self._path} is gone")
            self._keys, self._stamp, self.fault = self._read(), stamp, ""
        except ConfigError as error:
            self.fault = str(error)

    def _read(self) -> dict[str, Key]:
        """Return what the file holds now. Raises `ConfigError`."""
        keys = read_keys(self._path)
        if self._most is not None and len(keys) > self._most:
            raise ConfigError(TOGETHER)
        return keys

    def _identity(self, name: str, key: Key, hashed: str) -> Identity:
        return Identity(f"key:{name}", key.role, key.limits, credential=hashed[:16])

    def _look(self) -> tuple[int, int, int]:
        try:
            found = self._path.stat()
        except OSError:
            return _ABSENT
        return found.st_ino, found.st_mtime_ns, found.st_size

    @property
    def gone(self) -> bool:
        """Whether there is no file."""
        return self._stamp == _ABSENT
