"""Rule: a credential is good or it is not, and nobody learns more; what is known of one never names another."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
from pathlib import Path
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st
from joserfc import jwt
from joserfc.jwk import ECKey, KeySet, OctKey, OKPKey, RSAKey

from trio_claude.config import Config
from trio_claude.errors import ConfigError, HttpRefusal
from trio_claude.identity import LOCAL, Gatekeeper, Identity, Tickets
from trio_claude.identity.keys import Key, Keyring, digest, new_secret, read_keys, write_keys
from trio_claude.identity.tickets import KEPT, KEPT_EACH, LIFETIME

NOW = 1_800_000_000
ISSUER, AUDIENCE = "https://issuer.example", "trio-claude"
CLAIMS = {"iss": ISSUER, "aud": AUDIENCE, "sub": "alice", "exp": NOW + 600}


def keys_file(folder: Path, **keys: Key) -> Path:
    path = folder / "keys.json"
    write_keys(path, keys)
    return path


@pytest.fixture(scope="module")
def signers() -> dict[str, Any]:
    return {
        "hs": OctKey.generate_key(256, parameters={"kid": "hs", "alg": "HS256"}),
        "rs": RSAKey.generate_key(2048, parameters={"kid": "rs", "alg": "RS256"}),
        "es": ECKey.generate_key("P-256", parameters={"kid": "es", "alg": "ES256"}),
        "ed": OKPKey.generate_key("Ed25519", parameters={"kid": "ed", "alg": "Ed25519"}),
    }


@pytest.fixture
def gatekeeper(tmp_path: Path, signers: dict[str, Any]) -> Gatekeeper:
    public = [key.as_dict(private=name == "hs") for name, key in signers.items()]
    (tmp_path / "jwks.json").write_text(json.dumps({"keys": public}))
    return Gatekeeper(jwt_config(tmp_path))


def jwt_config(folder: Path) -> Config:
    return Config(jwt_keys=str(folder / "jwks.json"), jwt_issuer=(ISSUER,), jwt_audience=AUDIENCE)


def token(key: Any, claims: dict[str, Any] = CLAIMS, **header: Any) -> str:
    said = key.as_dict(private=False) if key.key_type != "oct" else key.as_dict(private=True)
    whole = {"alg": said["alg"], "kid": said["kid"], **header}
    return jwt.encode(whole, claims, key, algorithms=[whole["alg"]])


def part(value: Any) -> str:
    data = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def identify(gatekeeper: Gatekeeper, secret: str, wall: float = NOW) -> Identity | None:
    return gatekeeper.identify({"authorization": f"Bearer {secret}"}, None, 0.0, wall)


def refused(gatekeeper: Gatekeeper, secret: str, wall: float = NOW) -> str:
    with pytest.raises(HttpRefusal) as error:
        identify(gatekeeper, secret, wall)
    assert error.value.status == 401
    return f"{error.value} {error.value.code} {error.value.headers}"


# -- keys --------------------------------------------------------------------------------------------------------------


def test_a_key_is_found_by_its_secret_only(tmp_path: Path) -> None:
    a, b = new_secret(), new_secret()
    path = keys_file(tmp_path, alice=Key(digest(a)), bob=Key(digest(b), "viewer", limits={"runs_per_identity": 2.0}))
    keyring = Keyring(path)
    assert keyring.find(a, 0, 0) == Identity("key:alice", credential=digest(a)[:16])
    found = keyring.find(b, 0, 0)
    assert found
    assert (found.name, found.role, found.limits, found.may_run) == (
        "key:bob",
        "viewer",
        {"runs_per_identity": 2.0},
        False,
    )
    assert keyring.find(a[:-1], 0, 0) is None
    assert keyring.find(digest(a), 0, 0) is None
    assert a not in path.read_text()
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o644])
def test_who_could_read_the_old_file_can_read_the_new_one(tmp_path: Path, mode: int) -> None:
    path = keys_file(tmp_path)
    path.chmod(mode | 0o022)
    write_keys(path, {"a": Key(digest("secret"))})
    assert path.stat().st_mode & 0o777 == mode


def test_keys_are_long_and_random() -> None:
    secrets = {new_secret() for _ in range(100)}
    assert len(secrets) == 100
    assert all(len(secret) == 47 for secret in secrets)


def test_a_rotated_key_is_good_for_its_overlap(tmp_path: Path) -> None:
    old, new = new_secret(), new_secret()
    keyring = Keyring(keys_file(tmp_path, a=Key(digest(new), old=digest(old), old_until=100.0)))
    found = keyring.find(old, 0, 99)
    assert found
    assert found.until == 100.0
    assert keyring.holds(found, 0, 99)
    assert not keyring.holds(found, 0, 100)
    assert keyring.find(old, 0, 100) is None
    assert keyring.find(new, 0, 1e12)


def test_a_change_is_seen_and_a_bad_file_changes_nothing(tmp_path: Path) -> None:
    a, b = new_secret(), new_secret()
    path = keys_file(tmp_path, a=Key(digest(a)))
    keyring = Keyring(path)
    alice = keyring.find(a, 0, 0)
    assert alice
    keys_file(tmp_path, b=Key(digest(b)))
    assert keyring.find(b, 0.5, 0) is None
    assert keyring.find(b, 2, 0)
    assert not keyring.holds(alice, 2, 0)
    path.write_text("{")
    assert keyring.find(b, 4, 0)
    assert "no file of keys" in keyring.fault
    path.unlink()
    assert keyring.find(b, 6, 0)
    assert "is gone" in keyring.fault


def test_a_file_that_is_back_as_it_was_has_no_fault_any_more(tmp_path: Path) -> None:
    path = keys_file(tmp_path, a=Key(digest("a")))
    keyring = Keyring(path)
    path.rename(tmp_path / "elsewhere")
    keyring.refresh(2)
    assert "is gone" in keyring.fault
    (tmp_path / "elsewhere").rename(path)
    keyring.refresh(4)
    assert keyring.fault == ""


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("[]", "no file of keys"),
        ('{"a":{"hash":1}}', "no file of keys"),
        ('{"a":{"hash":"\u00e9"}}', "no file of keys"),
        ('{"a":{"hash":"HASH","role":"king"}}', "no file of keys"),
        ('{"a":{"hash":"HASH","else":1}}', "no file of keys"),
        ('{"a b":{"hash":"HASH"}}', "has a name"),
        ('{"a":{"hash":"HASH","limits":{"much":1}}}', "has a limit 'much'"),
        ('{"a":{"hash":"HASH","limits":{"runs_per_identity":-1}}}', "must be 0 or more"),
        ('{"a":{"hash":"HASH","limits":{"tokens_per_day":1.5}}}', "tokens_per_day must be a whole number"),
        ("[" * 100_000, "no file of keys"),
    ],
)
def test_a_bad_file_is_named(tmp_path: Path, text: str, error: str) -> None:
    path = tmp_path / "keys.json"
    path.write_text(text.replace("HASH", digest("x")))
    path.chmod(0o600)
    with pytest.raises(ConfigError, match=error):
        read_keys(path)


def test_a_file_that_others_may_write_is_refused(tmp_path: Path) -> None:
    path = keys_file(tmp_path, a=Key(digest("x")))
    path.chmod(0o620)
    with pytest.raises(ConfigError, match="others may write"):
        Keyring(path)


def test_isolation_off_takes_one_key_only(tmp_path: Path) -> None:
    path = keys_file(tmp_path, a=Key(digest("x")))
    config = Config(keys=str(path), isolation="off")
    Gatekeeper(config)
    keys_file(tmp_path, a=Key(digest("x")), b=Key(digest("y")))
    with pytest.raises(ConfigError, match="only one"):
        Gatekeeper(config)
    Gatekeeper(attrs.evolve(config, isolation="auto"))


# -- tokens ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["hs", "rs", "es", "ed"])
def test_a_good_token_of_each_kind_comes_in(gatekeeper: Gatekeeper, signers: dict[str, Any], name: str) -> None:
    found = identify(gatekeeper, token(signers[name]))
    assert found
    assert found.credential.startswith(f"{name}:")
    assert found == Identity(f"jwt:{ISSUER}#alice", until=NOW + 600 + 30, credential=found.credential)
    assert gatekeeper.knows(found, 0, NOW)
    assert not gatekeeper.knows(found, 0, NOW + 631)


def test_a_role_is_a_claim(gatekeeper: Gatekeeper, signers: dict[str, Any]) -> None:
    found = identify(gatekeeper, token(signers["es"], {**CLAIMS, "role": "viewer"}))
    assert found
    assert found.role == "viewer"


BAD_CLAIMS: dict[str, dict[str, Any]] = {
    "expired": {"exp": NOW - 31},
    "no exp": {"exp": None},
    "exp of another kind": {"exp": "never"},
    "exp is true": {"exp": True},
    "exp beyond all numbers": {"exp": 10**400},
    "not yet": {"nbf": NOW + 100},
    "issued later": {"iat": NOW + 100},
    "another issuer": {"iss": "https://evil.example"},
    "no issuer": {"iss": None},
    "an issuer in a list": {"iss": [ISSUER]},
    "another audience": {"aud": "other"},
    "no audience": {"aud": None},
    "no subject": {"sub": None},
    "an empty subject": {"sub": ""},
    "a subject with a newline": {"sub": "a\nb"},
    "a long subject": {"sub": "a" * 257},
    "a subject that is a number": {"sub": 7},
    "a role that is none": {"role": "root"},
    "a role in a list": {"role": ["admin"]},
}


@pytest.mark.parametrize("what", BAD_CLAIMS)
@pytest.mark.parametrize("name", ["hs", "rs"])
def test_bad_claims_are_refused(gatekeeper: Gatekeeper, signers: dict[str, Any], name: str, what: str) -> None:
    claims = {key: value for key, value in {**CLAIMS, **BAD_CLAIMS[what]}.items() if value is not None}
    header, _, _ = token(signers[name]).split(".")
    forged = f"{header}.{part(claims)}"
    key = signers[name]
    if name == "hs":
        signature = hmac.digest(key.raw_value, forged.encode(), "sha256")
    else:
        from cryptography.hazmat.primitives import hashes
        from cryptography.hazmat.primitives.asymmetric import padding

        signature = key.private_key.sign(forged.encode(), padding.PKCS1v15(), hashes.SHA256())
    refused(gatekeeper, f"{forged}.{part(signature)}")


def bad_tokens(signers: dict[str, Any]) -> dict[str, str]:
    """Return attacks on the head and the signature of a token."""
    good = token(signers["rs"])
    header, payload, signature = good.split(".")
    pem = signers["rs"].as_pem(private=False)
    confused = f"{part({'alg': 'HS256', 'kid': 'rs'})}.{payload}"
    other = RSAKey.generate_key(2048, parameters={"kid": "rs", "alg": "RS256"})
    jwk = other.as_dict(private=False)

    def headed(**said: Any) -> str:
        return f"{part({'alg': 'RS256', 'kid': 'rs', **said})}.{payload}.{signature}"

    return {
        "none": f"{part({'alg': 'none', 'kid': 'rs'})}.{payload}.",
        "None": f"{part({'alg': 'None', 'kid': 'rs'})}.{payload}.",
        "none and no kid": f"{part({'alg': 'none'})}.{payload}.",
        "unsigned": f"{header}.{payload}.",
        "RS to HS": f"{confused}.{part(hmac.digest(pem, confused.encode(), 'sha256'))}",
        "another algorithm of the same kind": headed(alg="RS512"),
        "PS for RS": headed(alg="PS256"),
        "no kid": f"{part({'alg': 'RS256'})}.{payload}.{signature}",
        "an unknown kid": headed(kid="nobody"),
        "a kid that is a path": headed(kid="../../../dev/null"),
        "a kid that is a query": headed(kid="rs' OR '1'='1"),
        "a kid that is a list": headed(kid=["rs"]),
        "a kid of another key": headed(kid="es"),
        "a key of its own": token(other, jwk=jwk),
        "a key elsewhere": token(other, jku="https://evil.example/jwks.json"),
        "a certificate elsewhere": token(other, x5u="https://evil.example/x.pem"),
        "a critical extension": f"{part({'alg': 'RS256', 'kid': 'rs', 'crit': ['exp'], 'exp': 1})}.{payload}.{signature}",
        "changed claims": f"{header}.{part({**CLAIMS, 'sub': 'root'})}.{signature}",
        "a huge one": f"{header}.{payload}{'A' * 9000}.{signature}",
        "two parts": f"{header}.{payload}",
        "five parts": f"{good}.{payload}.{signature}",
        "an encrypted one": f"{part({'alg': 'dir', 'enc': 'A256GCM', 'kid': 'hs'})}....",
        "brackets": f"{part(b'[' * 4000)}.{payload}.{signature}",
        "a head that is a list": f"{part([1])}.{payload}.{signature}",
        "not base64": f"%%%.{payload}.{signature}",
        "letters beyond ASCII": f"{header}\u00e9.{payload}.{signature}",
        "empty": "",
        "dots": "..",
    }


def test_forged_tokens_are_refused_with_one_answer(gatekeeper: Gatekeeper, signers: dict[str, Any]) -> None:
    answers = {what: refused(gatekeeper, forged) for what, forged in bad_tokens(signers).items()}
    assert len(set(answers.values())) == 1, answers
    assert set(answers.values()) == {refused(gatekeeper, new_secret())}


@given(st.text(st.characters(max_codepoint=255), max_size=300))
def test_any_text_is_refused_or_nothing(said: str) -> None:
    key = OctKey.import_key(b"k" * 32, {"kid": "hs", "alg": "HS256"})
    folder = Path(os.environ.get("TMPDIR", "/tmp"))
    path = folder / f"tct-jwks-{os.getpid()}.json"
    path.write_text(json.dumps(KeySet([key]).as_dict(private=True)))
    try:
        gatekeeper = Gatekeeper(Config(jwt_keys=str(path), jwt_issuer=(ISSUER,), jwt_audience=AUDIENCE))
        for headers in ({"authorization": said}, {"sec-websocket-protocol": said}, {"authorization": f"Bearer {said}"}):
            try:
                assert gatekeeper.identify(headers, None, 0, NOW) is None
            except HttpRefusal as error:
                assert error.status in (400, 401)
    finally:
        path.unlink()


@pytest.mark.parametrize(
    ("keys", "error"),
    [
        ("nonsense", "no JWK set"),
        ({"keys": []}, "no JWK set"),
        ({"keys": [1]}, "has no kid"),
        ({"keys": [{"kty": "XX", "kid": "a", "alg": "HS256"}]}, "has no kty"),
        ({"keys": [{"kty": "RSA", "kid": "a", "alg": "RS256"}]}, "no good key"),
        ({"keys": [{"kty": "oct", "k": "", "kid": "a", "alg": "HS256"}]}, "no good key"),
        ({"keys": [{"kty": "oct", "k": part(b"k" * 32), "alg": "HS256"}]}, "has no kid"),
        ({"keys": [{"kty": "oct", "k": part(b"k" * 32), "kid": "a"}]}, "must name its alg"),
        ({"keys": [{"kty": "oct", "k": part(b"k" * 32), "kid": "a", "alg": "RS256"}]}, "must name its alg"),
        ({"keys": [{"kty": "oct", "k": part(b"k" * 32), "kid": "a", "alg": "none"}]}, "must name its alg"),
        ({"keys": [{"kty": "oct", "k": part(b"short"), "kid": "a", "alg": "HS256"}]}, "fewer than 32 bytes"),
        ({"keys": [{"kty": "oct", "k": part(b"k" * 32), "kid": "a", "alg": "HS256"}] * 2}, "two keys"),
    ],
)
def test_a_bad_set_of_keys_is_named(tmp_path: Path, keys: Any, error: str) -> None:
    (tmp_path / "jwks.json").write_text(keys if isinstance(keys, str) else json.dumps(keys))
    with pytest.raises(ConfigError, match=error):
        Gatekeeper(jwt_config(tmp_path))


OTHER_KEYS = [
    {"kty": "RSA", "kid": "enc", "alg": "RSA-OAEP", "use": "enc"},
    {"kty": "RSA", "kid": "enc-without-a-use", "alg": "RSA-OAEP"},
    {"kty": "oct", "k": part(b"k" * 32), "kid": "hs", "alg": "HS256", "use": "enc"},
    {"kty": "oct", "k": part(b"k" * 32), "kid": "hs", "alg": "HS256", "key_ops": ["sign"]},
    {"kty": "AKP", "kid": "of tomorrow", "alg": "ML-DSA-44"},
    {"kty": "EC", "kid": "k", "alg": "ES256K", "use": "sig"},
    {"kty": [], "alg": []},
]
"""What a usual set of an identity provider may hold too."""


def test_keys_that_verify_no_token_are_passed_over(tmp_path: Path) -> None:
    good = {
        "kty": "oct",
        "k": part(b"k" * 32),
        "kid": "hs",
        "alg": "HS256",
        "use": "sig",
        "key_ops": ["sign", "verify"],
    }
    (tmp_path / "jwks.json").write_text(json.dumps({"keys": [*OTHER_KEYS, good]}))
    gatekeeper = Gatekeeper(jwt_config(tmp_path))
    assert identify(gatekeeper, token(OctKey.import_key(b"k" * 32, {"kid": "hs", "alg": "HS256"})))


@pytest.mark.parametrize(
    ("secret", "changed"),
    [(b"j", {}), (b"k", {"jwt_issuer": ("https://other.example",)}), (b"k", {"jwt_audience": "other"})],
)
def test_who_came_by_what_was_taken_back_is_known_no_more(
    tmp_path: Path, secret: bytes, changed: dict[str, Any]
) -> None:
    """A key under the kid of the one that it replaces, an issuer, an audience."""

    def gatekeeper(secret: bytes, **changed: Any) -> Gatekeeper:
        key = {"kty": "oct", "k": part(secret * 32), "kid": "hs", "alg": "HS256"}
        (tmp_path / "jwks.json").write_text(json.dumps({"keys": [key]}))
        return Gatekeeper(attrs.evolve(jwt_config(tmp_path), **changed))

    signer = OctKey.import_key(b"k" * 32, {"kid": "hs", "alg": "HS256"})
    found = identify(gatekeeper(b"k"), token(signer))
    assert found
    assert gatekeeper(b"k").knows(found, 0, NOW)
    assert not gatekeeper(secret, **changed).knows(found, 0, NOW)


@pytest.mark.parametrize("key", OTHER_KEYS)
def test_a_set_with_no_key_that_verifies_is_refused(tmp_path: Path, key: dict[str, Any]) -> None:
    (tmp_path / "jwks.json").write_text(json.dumps({"keys": [key]}))
    with pytest.raises(ConfigError, match=r"verifies no signatures|has no kty|must name its alg"):
        Gatekeeper(jwt_config(tmp_path))


def test_tokens_need_an_issuer_and_an_audience() -> None:
    with pytest.raises(ConfigError, match="jwt_issuer and jwt_audience"):
        Config(jwt_keys="x")
    with pytest.raises(ConfigError, match="jwt_issuer"):
        Config(jwt_issuer=("a#b",))


def test_no_two_identities_have_one_name(tmp_path: Path, gatekeeper: Gatekeeper, signers: dict[str, Any]) -> None:
    """A name says where it comes from; `#` and `:` in a subject can't make it another's."""
    names = set()
    for subject in ("alice", "local", "key:alice", f"{ISSUER}#alice", "a#b", "#"):
        found = identify(gatekeeper, token(signers["es"], {**CLAIMS, "sub": subject}))
        assert found
        names.add(found.name)
    assert len(names) == 6
    assert not any(name == "local" or name.startswith("key:") for name in names)


# -- where a credential may stand --------------------------------------------------------------------------------------


def test_nobody_is_asked_where_there_are_no_keys() -> None:
    gatekeeper = Gatekeeper(Config())
    assert gatekeeper.identify({"authorization": "Bearer x"}, None, 0, 0) is LOCAL
    assert gatekeeper.knows(LOCAL, 0, 0)


def test_a_credential_stands_in_a_header_or_a_subprotocol(tmp_path: Path) -> None:
    secret = new_secret()
    gatekeeper = Gatekeeper(Config(keys=str(keys_file(tmp_path, a=Key(digest(secret))))))
    protocol = f"trio-claude.v1, bearer.{part(secret.encode())}"
    for headers in ({"authorization": f"bearer {secret}"}, {"sec-websocket-protocol": protocol}):
        found = gatekeeper.identify(headers, None, 0, 0)
        assert found
        assert found.name == "key:a"
    assert gatekeeper.identify({}, None, 0, 0) is None
    assert not gatekeeper.knows(LOCAL, 0, 0)
    with pytest.raises(HttpRefusal) as two:
        gatekeeper.identify({"authorization": f"Bearer {secret}", "sec-websocket-protocol": protocol}, None, 0, 0)
    assert two.value.status == 400
    for wrong in (f"Basic {secret}", secret, "Bearer", f"Bearer {secret} x"):
        with pytest.raises(HttpRefusal) as error:
            gatekeeper.identify({"authorization": wrong}, None, 0, 0)
        assert error.value.status == 401


# -- tickets -----------------------------------------------------------------------------------------------------------


def test_a_ticket_is_good_once_in_time_and_from_its_origin() -> None:
    tickets, alice = Tickets(), Identity("key:alice")
    secret = tickets.issue(alice, "https://a.example", 0)
    assert tickets.spend(secret, "https://a.example", 1) == alice
    assert tickets.spend(secret, "https://a.example", 1) is None
    assert tickets.spend(tickets.issue(alice, "https://a.example", 0), None, 1) is None
    assert tickets.spend(tickets.issue(alice, None, 0), "null", 1) is None
    assert tickets.spend(tickets.issue(alice, None, 0), None, LIFETIME) is None
    assert tickets.spend("", None, 0) is None
    assert not len(tickets)


def test_a_ticket_opens_a_socket(tmp_path: Path) -> None:
    secret = new_secret()
    gatekeeper, tickets = Gatekeeper(Config(keys=str(keys_file(tmp_path, a=Key(digest(secret)))))), Tickets()
    found = identify(gatekeeper, secret)
    assert found
    headers = {"sec-websocket-protocol": f"ticket.{part(tickets.issue(found, None, 0).encode())}"}
    ticket = gatekeeper.ticket(headers)
    assert ticket
    assert gatekeeper.ticket({"authorization": f"Bearer {secret}", **headers}) is None
    assert gatekeeper.identify(headers, tickets.spend(ticket, None, 1), 1, 0) == found
    with pytest.raises(HttpRefusal):
        gatekeeper.identify(headers, tickets.spend(ticket, None, 1), 1, 0)


def test_a_ticket_of_a_key_that_was_taken_back_is_worth_nothing(tmp_path: Path) -> None:
    secret = new_secret()
    gatekeeper = Gatekeeper(Config(keys=str(keys_file(tmp_path, a=Key(digest(secret))))))
    found = identify(gatekeeper, secret)
    assert found
    headers = {"sec-websocket-protocol": f"ticket.{part(b'any')}"}
    keys_file(tmp_path, b=Key(hashlib.sha256(b"x").hexdigest()))
    with pytest.raises(HttpRefusal):
        gatekeeper.identify(headers, found, 2, 0)


def test_tickets_are_bounded() -> None:
    tickets, other = Tickets(), Identity("key:other")
    first, others = tickets.issue(LOCAL, None, 0), tickets.issue(other, None, 0)
    for _ in range(KEPT_EACH):
        tickets.issue(LOCAL, None, 0)
    assert len(tickets) == KEPT_EACH + 1
    assert tickets.spend(first, None, 0) is None
    assert tickets.spend(others, None, 0) == other
    for number in range(KEPT + 5):
        tickets.issue(Identity(f"key:{number % 200}"), None, 0)
    assert len(tickets) == KEPT
