"""Rule: a secret is where it is needed and nowhere else: no log, argument list, tool, answer or file of another has it."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from secrets import token_hex

import pytest
import trio
from harness import Backend, bearing, directive, head, open_backend, short_folder
from joserfc import jwt
from joserfc.jwk import OctKey
from program import environ, serving, trio_claude

BOTH = ["fake", pytest.param("real", marks=pytest.mark.real_cli)]


async def say(url: str, data: bytes) -> bytes:
    """Send a request; return its answer."""
    port = int(url.rpartition(":")[2])
    async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
        await stream.send_all(data)
        return bytes(await stream.receive_some(65536))


def words_of(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def holders(folder: Path, canary: str) -> list[str]:
    """Return the files below a folder that hold a canary."""
    return [str(path) for path in folder.rglob("*") if path.is_file() and canary.encode() in path.read_bytes()]


@pytest.mark.parametrize("name", BOTH)
async def test_no_canary_is_found_where_it_has_no_business(name: str) -> None:
    with short_folder() as folder:
        async with open_backend(name, folder) as cli:
            await look_for_canaries(cli, folder)


async def look_for_canaries(cli: Backend, folder: Path) -> None:
    secret = token_hex(32)
    server_only, prompt = f"canary-server-{token_hex(8)}", f"canary-prompt-{token_hex(8)}"
    jwks = {
        "keys": [
            {
                "kty": "oct",
                "kid": "a",
                "alg": "HS256",
                "k": base64.urlsafe_b64encode(secret.encode()).rstrip(b"=").decode(),
            }
        ]
    }
    (folder / "jwks.json").write_text(json.dumps(jwks))
    claims = {"iss": "i", "aud": "a", "sub": "tom", "exp": 4_000_000_000}
    token = jwt.encode({"alg": "HS256", "kid": "a"}, claims, OctKey.import_key(secret.encode()))
    env = {
        **environ(cli), "DATABASE_PASSWORD": server_only, "TRIO_CLAUDE_JWT_KEYS": str(folder / "jwks.json"),
        "TRIO_CLAUDE_JWT_ISSUER": "i", "TRIO_CLAUDE_JWT_AUDIENCE": "a", "TRIO_CLAUDE_KEYS": str(folder / "keys.json"),
        "TRIO_CLAUDE_STATE": str(folder / "state"), "TRIO_CLAUDE_CLI_ARGS": "--allowed-tools=Bash",
        "TRIO_CLAUDE_ENV": "LC_TEST", "TRIO_CLAUDE_LOG_LEVEL": "debug", "TRIO_CLAUDE_ACCESS_LOG": "true",
    }  # fmt: skip
    del env["TRIO_CLAUDE_CWD"]
    key = (await trio_claude("keys", "add", "alice", env=env)).stdout.decode().strip()
    wrong = f"tck_{token_hex(16)}"
    log = folder / "log"
    answers: list[bytes] = []
    seen: set[bytes] = set()
    with log.open("wb") as stderr:
        async with serving("serve", "--port", "0", env=env, stderr=stderr.fileno()) as (process, url):
            for credential in (key, token, wrong):
                told = await trio_claude(
                    "ask", directive("bash", cmd=f"env; ulimit -c; : {prompt}"), "--url", url, "--json",
                    env={**env, "TRIO_CLAUDE_KEY": credential},
                )  # fmt: skip
                answers.append(told.stdout if credential != wrong else told.stdout + told.stderr)
            shake = head(host="localhost", authorization=f"Bearer {wrong}")
            answers.append(await say(url, shake))
            address = head(f"/{wrong}", host="localhost", authorization=f"Bearer {key}", upgrade=None)
            assert b"404" in await say(url, address)
            async with trio.open_nursery() as nursery:

                async def long_one() -> None:
                    await trio_claude(
                        "ask",
                        directive("slow", n=10, ms=100, text=prompt),
                        "--url",
                        url,
                        env={**env, "TRIO_CLAUDE_KEY": key},
                    )
                    nursery.cancel_scope.cancel()

                nursery.start_soon(long_one)
                while True:
                    seen |= {words_of(pid) for pid in bearing(f"LC_TEST={cli.mark}") if pid != process.pid}
                    await trio.sleep(0.02)
    tools = b"".join(answers[:2])
    assert tools.count(b"LC_TEST=") >= 2, "the tool's environment was seen"
    assert tools.count(b"\\n0") >= 2, "a tool dumps no core"
    logged = log.read_bytes()
    assert b'"path": "/[hidden]"' in logged
    assert b'"RunEnded"' in logged
    listed = b"\n".join(words for words in seen if b"trio_claude\0ask" not in words)
    assert b"--output-format" in listed, "the CLI was seen"
    for what in (key, token, secret, wrong, server_only):
        assert what.encode() not in logged, "log"
        assert what.encode() not in listed, "argument list"
        assert what.encode() not in b"".join(answers), "answer, or environment of a tool"
        assert not holders(folder / "state", what), "file of an identity"
    assert prompt.encode() not in logged
    assert prompt.encode() not in listed
    assert holders(folder, key) == []
    assert logged.count(b'"key:alice"') >= 4, "the log names the identity"
